"""What people write around the matter itself: other matters, remarks, greetings."""

from __future__ import annotations

from amal_hf.corpus.phrases import lines

TOPICS = {
    "billing": lines("""
the [double|extra] charge
the wrong invoice
the late fee
the missing receipt
the {month} bill
the payment of {day}
my voucher
"""),
    "fault": lines("""
the flat tyre
the jammed dock at {station}
the loose brake
the broken saddle
the chain that came off
the dead screen at {station}
the lock that stays shut
"""),
    "account": lines("""
the lost password
my blocked login
the expired code
the wrong email address
the name in my profile
my second account
my user name
"""),
    "cancellation": lines("""
the end of my pass
my notice for {month}
the cancellation
the winter pause
leaving the family plan
my wish to stop in {month}
the passes we return
"""),
    "feedback": lines("""
my idea for the map
the compliment for {name}
the praise I sent
my suggestion for {station}
the wish for more child seats
the thank-you for your mechanic
my five stars
"""),
}
"""Noun phrases that name a matter of each class."""

CONTRASTS = lines("""
{B} is sorted, {A} is not.
{A} is what I need help with, {B} is done.
You answered me about {B}, [while|but] my question was about {A}.
I am [writing|calling] about {A}, not about {B}.
I am not [writing|calling] about {B}, I am [writing|calling] about {A}.
This is not about {B}, it is about {A}.
This is about {A}, it is not about {B}.
Forget {B}, I [need an answer on|wrote because of] {A}.
My ticket was filed under {B}, please move it to {A}.
First there was {B}, that is behind us; what is left is {A}.
With {B} out of the way, can we [talk about|come back to] {A}?
I mentioned {B} only in passing, my point was {A}.
My point was {A}, I mentioned {B} only in passing.
Nobody has replied about {A}; the mail about {B} I did get.
I asked {name} about {A} on {day} and got an answer about {B}.
Before you ask about {B} again: I wrote about {A}.
Since {day} I have waited for news on {A}, {B} can wait.
""")
"""Frames that name two matters: `{A}` is the one the message is about. A bag of words cannot tell which."""

REMARKS = {
    "billing": lines("""
the [{month}|last] invoice is fine
the double charge was refunded [on {day}|last week]
I paid the late fee
I know what a ride costs
the payment went through
the price on my bill is right
I do not want any money back
"""),
    "fault": lines("""
the flat tyre was fixed [on {day}|the same day]
the dock at {station} works again
the brakes are fine
the chain holds now
the lock opens now
the bike itself was all right
no saddle was loose this time
"""),
    "account": lines("""
I already reset my password
logging in works
my email address is up to date
the code arrived in the end
I can sign in on my other phone
my name in the profile is right now
the app no longer signs me out
"""),
    "cancellation": lines("""
I do not want to cancel
I am not leaving
my pass renews in {month} as it should
I thought about ending my membership
pausing the pass was easy
I need the pass for another year
I know the notice period
"""),
    "feedback": lines("""
I like the bikes
the people at {station} are kind
your app is the best one on my phone
the new map is a good idea
the answer I got on {day} was patient
I recommend you to everyone
I enjoy my commute
"""),
}
"""Clauses that mention a matter of each class without being about it."""

OPENERS = lines("""
I have been a member since {month}.
I wrote about this on {day} [already|too].
I use the {station} station most days.
I hope this reaches the right person.
The chat on your site sent me here.
""")

FILLERS = lines("""
My member number is {member}.
Please answer by email, not by phone.
Sent from my phone.
No hurry.
{name} at the {station} kiosk told me to write.
I called on {day}, nobody picked up.
I can send a photo.
""")

GREETINGS = lines("""
Hi,
Hello,
Good morning,
Dear Pinwheel team,
Hi Pinwheel,
Hey there,
Dear {name},
""")

CLOSINGS = lines("""
Thanks!
Thank you in advance.
Best, {name}
Please help.
Kind regards, {name}
Have a nice day.
Hope to hear from you by {day}.
Many thanks, {name}
Cheers
""")
