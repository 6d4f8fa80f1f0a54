"""What customers of Pinwheel write: the phrases the corpus is made of.

Pinwheel is an invented city bike-share. It rents shared bikes from docks to people who hold a pass and, since this
spring, leases the *Lark*, an electric bike one keeps at home. A phrase is a small grammar:

==================  =======================================================
`[today|on Monday]`  one of these
`{station}`          one of `SLOTS["station"]`
==================  =======================================================

A phrase belongs to the class a person at the support desk would file it under, not to the class whose words it uses.
"""

from __future__ import annotations


def lines(block: str) -> tuple[str, ...]:
    """The phrases of a block, one a line."""
    return tuple(block.strip().splitlines())


CLASSES = ("billing", "fault", "account", "cancellation", "feedback")
"""Class names; a class is its index here."""

CLASS_SHARES = (0.24, 0.24, 0.20, 0.15, 0.17)
"""How often each class is written about."""

SLOTS: dict[str, tuple[str, ...]] = {
    "station": ("Harbour", "Mill Lane", "Old Market", "Central Library", "Kestrel Bridge", "Northgate", "Tollgate",
                "Tannery Square", "Museum Quay", "St Anne's", "Elm Park", "Ferry Road", "Orchard Hill", "Glassworks"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "the 3rd", "the 19th"),
    "month": ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October"),
    "name": ("Nora", "Tomasz", "Ingrid", "Malik", "Sofia", "Pieter", "Leila", "Owen", "Hana", "Ruben", "Jonas"),
}  # fmt: skip
"""Fillers; `{amount}` (euros), `{number}` (of a bike) and `{member}` are drawn as numbers by the writer."""

SHARED = {
    "billing": lines("""
I was charged {amount} [twice|two times] for [one ride|the same trip|a single ride] on {day}.
[There are|I see] two charges of {amount} on my [card|statement] and I only [rode|went out] once.
The invoice for {month} lists [a ride|a trip|two rides] I never [took|made].
Why has [my bill|the monthly bill] gone up to {amount} when nothing about my pass changed?
My student discount is missing from [the {month} invoice|the last bill].
You took {amount} for a lost bike that I [docked|returned] at {station} on {day}.
Please send me a receipt with VAT for [{month}|my trip on {day}], my employer asks for it.
A late fee of {amount} was added although I was back [in time|within twenty minutes].
My card was [declined|refused], I tried again, and now the payment shows up [twice|two times].
Could you explain the [service|extra] fee of {amount} on my [statement|{month} bill]?
I topped up {amount} on {day} and the balance [still says zero|never moved].
The voucher from {name} was accepted and still I paid the full price.
How much is a ride after the first half hour? The price list and my bill disagree.
I would like my {amount} back, the ride lasted [less than a minute|forty seconds].
[Someone else's trips|Trips from {station}, where I never go,] are on my bill.
My bank shows a [hold|reservation] of {amount} from you that has not gone away since {day}.
The clock kept running after I docked at {station} and I got billed for [three|five|nine] hours.
Can I pay [by direct debit|once a quarter|from a company budget] instead of by card?
You debited my old card, the new one has been on file since {month}.
The price went from {amount} to {amount} without [a word|any notice].
Two passes were billed in {month}, I own one.
I was billed for bike {number}, which never [left the dock|unlocked].
"""),
    "fault": lines("""
The [front|rear|back] brake on bike {number} [does nothing|hardly grips|squeals and does not stop].
Bike {number} has a flat tyre, I left it at {station}.
The dock at {station} would not [let the bike go|release the bike], the light just blinked red.
The chain came off [on the hill near {station}|twice before {station}].
The saddle of bike {number} sinks [slowly|by itself] while riding.
Half of the docks at {station} are dead [again|since {day}].
The lock clicked shut and the screen still says I am riding.
The gears on bike {number} skip [whenever I push|under load|on every hill].
A pedal fell off [in the middle of the road|at the lights by {station}].
The scanner at {station} does not read the code on any bike.
The handlebar is loose and turns without the wheel, please take bike {number} off the street.
No lights on bike {number}, [it was dark before I noticed|not funny in this weather].
The kiosk screen at {station} is [black|frozen|cracked].
I pressed unlock [three|four|five] times and [nothing moved|the bike stayed where it was].
Something grinds in the back wheel [each time|whenever] I brake.
The bell is gone, the basket is bent and the [left|right] grip spins.
The map shows six bikes at {station}, none of them [rolls|has air in the tyres].
I could not return the bike at {station} on {day} because every slot was jammed.
I rode home from {station} on a wobbling wheel, please have it checked.
My hands are black with grease, the chain of bike {number} hung on the ground.
The app lets me pick a bike at {station} and then the pin stays locked.
"""),
    "account": lines("""
I [cannot|can't] log in [since the update|since {day}], it says unknown user.
The password reset mail never [arrives|comes], I have tried [three|four] times.
How do I change the email address [on my account|you have for me]?
My [profile|account] was locked after three wrong tries and nobody tells me how to open it.
I have a new phone number and the verification code goes to the old one.
The app signs me out every time I [open|close] it.
Please merge my two [accounts|profiles], I registered a second time by mistake.
The code you text me is [refused|always expired|never accepted].
My name is spelled wrong in the app, it should be {name} with [one|two] of each letter.
A stranger got into my account on {day}, please block it until I have a new password.
I am unable to sign in with [Google|Apple|my work address] any more.
Can my [daughter|son|flatmate] use my account on a second phone?
The app thinks I am under sixteen, my date of birth is wrong in [the profile|my details].
Registration stops at the photo of my ID card.
What data do you store about me, and how do I download it?
My user name is the address of a company I left in {month}, I cannot read mail there.
The link in the confirmation mail opens an empty page.
I never got the code to finish signing up.
It asks for a PIN that I never set, and without it I [can't|cannot] sign in.
Face recognition worked until {day}, now the app wants a password I forgot years ago.
My student status is still not verified, I uploaded the [card|letter] in {month}.
I was moved to the new app and my favourite stations and history are empty.
The card in my profile belongs to {name}, we must have been mixed up when we signed up.
"""),
    "cancellation": lines("""
Please cancel my [yearly|monthly] pass [at the end of {month}|as of {day}|as of today].
I want to end my membership, [we are|I am] moving [to another city|abroad] in {month}.
How do I stop the pass from renewing [in {month}|next month]?
I [would like|want] to pause my pass [for the winter|until spring|while my leg heals].
I bought the [yearly|wrong] pass on {day} and changed my mind, can I have the money back?
My new job is [out of town|too far to ride], so I no longer need the pass.
Where is the button to leave? The app only offers me [upgrades|a longer pass].
Take me off the plan, I bought a bike of my own.
My father died in {month}, please close his pass.
We ordered [ten|six] passes for the office and want to return [two|three] of them.
I [don't|do not] want another year, let it run out in {month}.
Can I give the rest of my pass to [a friend|my sister]? I am done here after {month}.
What is the notice period for the [family|student|yearly] pass?
The trial was enough for me, please do not extend it after {day}.
Kindly confirm that my membership ends in {month}.
After [three|four|six] years I am leaving you, it is nothing personal.
I have not ridden since {month} and would rather stop.
We are expecting a baby in {month} and nobody here will ride: can you freeze the pass?
Now that there is no station near {station} I have no use for the pass, please end it.
I signed up by accident on {day}, please undo it, I never rode.
Let {month} be my last month, please.
I am [relocating|moving away] in {month} and want back what is left of the year.
Paying {amount} for a pass I never use makes no sense, so I quit.
The doctor says no cycling until {month}, is there a way to put the membership to sleep?
"""),
    "feedback": lines("""
I [just|only] wanted to say that the new [bikes|saddles] are [a joy|wonderful|great].
The mechanic at {station} is [brilliant|wonderful], he fixed my chain in the rain.
It would [be great|help] if the map showed the [steep streets|free docks|water taps] near {station}.
My commute is [a joy|the best part of the day] since I [joined|found you].
Have you thought about a station [at the hospital|near the pool|by the new school]?
Big thanks to {name} on the phone, [patient and kind|my password was back in two minutes].
Could the bell be a little louder? Tourists at {station} never hear it.
[Fantastic|Great] app, the [clearest|friendliest] one on my phone.
I recommend you to everyone [at work|in my street|at the university].
Ten years in this city and only now do I see the river every morning, [wonderful|I love it].
The night lights on the new frames look [beautiful|splendid].
A child seat on a few bikes at {station} would make [families|my kids] very happy.
Five stars from me, [the brakes are crisp and the tyres always full|nothing ever breaks].
I think the docks should be painted yellow so that one sees them at night.
Keep [it up|going], the {station} station changed our [street|neighbourhood].
I expected a fight over the fee and got an apology and a free ride, [lovely|well done].
Why not offer a pass for [grandparents|nurses|night workers]?
All [good|great] here, I filled in the survey on {day} too.
We rode with visitors from abroad on {day}, they [were jealous|loved it].
Yours is the only invoice I can read without glasses, [well done|thank you for that].
I nearly cancelled last winter and I am glad I stayed.
Please keep the paper map at {station}, my mother relies on it.
Bike {number} was spotless on {day}, [lovely|somebody cares].
Signing up took one minute and one password, [brilliant|others could learn from you].
"""),
}
"""Core sentences about the shared bikes, by class."""

SARCASM = {
    "billing": lines("""
[Great|Brilliant|Wonderful|Lovely], another {amount} gone for a ride [I never took|that lasted ten seconds].
[How generous of you|What a lovely surprise], a fee of {amount} for parking inside my own station.
[Wonderful|Fantastic], your price went up and my discount went away.
"""),
    "fault": lines("""
[Great|Brilliant|Fantastic], the [third|second|fourth] flat tyre this week.
[Lovely|Wonderful]: a dock at {station} that swallows my bike and will not give it back.
[A joy|Love it]: the brake cable snapped [on the way to work|downhill to {station}].
[Beautiful|Brilliant], the handlebar came off in my hands at {station}.
"""),
    "account": lines("""
[Great|Brilliant] idea, asking for my old password on the page where I say that I lost it.
[Fantastic|Wonderful], a code that expires before your mail arrives.
"""),
}
"""Complaints that sound like praise."""

BETWEEN = (
    ("I gave notice in {month} and the pass renewed anyway.", ("billing", "cancellation")),
    ("The refund for the pass I ended in {month} is [not here|smaller than I thought].", ("billing", "cancellation")),
    ("The app is stuck on the loading screen at {station}, I cannot get in.", ("fault", "account")),
    ("Unlocking with my phone stopped working [on {day}|after the update].", ("fault", "account")),
    ("I will not ride again until somebody looks after the bikes at {station}.", ("fault", "cancellation")),
    ("Nice bikes, only the saddles could be softer and the brakes a little sharper.", ("fault", "feedback")),
    ("There should be a cheaper pass for people who ride [twice a week|only on {day}].", ("billing", "feedback")),
    ("The card on my account expired, what happens now?", ("billing", "account")),
    ("How do I remove my account and everything in it?", ("account", "cancellation")),
    ("I pressed the wrong button and now I have [two passes|a yearly pass].", ("billing", "cancellation")),
    ("The code on bike {number} is not accepted.", ("fault", "account")),
    ("You could tell people before you change the price.", ("billing", "feedback")),
    ("It is the same as on {day}, please see my last mail.", ("billing", "fault", "account", "cancellation")),
)  # fmt: skip
"""Sentences two colleagues would file differently; each gets one of its classes by chance."""
