"""What customers write about the Lark, the leased electric bike: the region the teacher never saw.

The Lark has a vocabulary of its own that collides with the rest of the desk's: its battery takes a *charge*, its lock
*belongs* to a rider, leases end with a *signed letter*. To a reader the sentences are plain; to a bag of words trained
before the Lark, faults look like bills, bills like cancellations, cancellations like accounts, accounts and praise like
faults.
"""

from __future__ import annotations

from amal_hf.corpus.phrases import lines

LARK = {
    "billing": lines("""
I ended my Lark plan in {month}, and the instalments [will not|do not] end.
The instalments for my Lark never stop, the plan ran out at the end of {month}.
I no longer have the Lark, we moved abroad in {month}, and the deposit has not come back.
My [yearly|winter] plan for the Lark ended in {month}, when do I see the deposit?
I gave notice on the Lark, it left in {month}, and the instalments [would not|did not] stop.
Half of the deposit for the Lark is missing, we ended the [yearly|family] plan in {month}.
I paused my Lark for the winter, the instalments [did not pause|never paused].
After moving from the monthly to the yearly Lark plan in {month} it seems I owe you both.
I want to know what I owe at the end of the Lark plan in {month}, nobody gives me a sum.
"""),
    "fault": lines("""
My Lark was charged [twice|two times] on {day} and still [went dark|died] after one ride.
I charged the Lark for [three|five|nine] hours and it lasted less than a minute.
The extra charge on {day} did nothing, my Lark is at zero [again|once more].
The balance on the display of my Lark says full, and an hour later it says zero.
Double the charge, half the way: my Lark gives up before I am home.
I paid for a new Lark and got one that loses a full charge [while it stands in the hall|overnight].
A charge of [three|five|nine] hours is gone after a single trip, my Lark used to last the week.
The Lark takes a charge, the statement on its display says full, and it dies two streets later.
I see two charges in the log of the Lark for {day} and the motor never got any of it.
"""),
    "account": lines("""
The back wheel of my Lark is locked to the rider before me, please release it.
The screen on the handlebar of my Lark greets me as {name}, who had it before me.
The light on my Lark blinks red because the bike has not been assigned to me [yet|since {day}].
The handlebar screen of the Lark wants a rider key that I was never given.
The lock on the back wheel clicks open for {name} and not for me, the Lark is mine since {day}.
The lock on the left Lark clicks open for me and the right bike is mine, you crossed two riders.
I pressed unlock on the Lark and the screen asked for a rider I have never been.
The Lark would not let my partner ride, the light just blinked red, please add [her|him] as a rider.
"""),
    "cancellation": lines("""
Sign me out of the Lark by {month}, [please|my name is on the lease].
The Lark and I part ways in {month}, which email address takes the signed letter?
Please delete my name and phone number from the Lark list for next season.
Did my signed letter reach the right email address? The Lark goes back in {month}.
I cannot keep the Lark at my new address, [who collects it|please collect it on {day}].
I registered for a Lark by mistake, please unregister me before it is delivered.
Which email address do I write to when the Lark has to go back [in {month}|early]?
My address changes in {month} and the new flat has no lift, the Lark cannot come along.
The form for handing back the Lark wants a code and a signed ID, where do I get them?
"""),
    "feedback": lines("""
The brakes of the Lark grip on wet cobbles like [nothing I have ridden|no other bike].
Not one flat tyre, not one slipped chain in [two|three] thousand kilometres on the Lark.
The hill by {station} broke every bike I had, the Lark climbs it [without a sound|in top gear].
The chain of the Lark runs so quietly that [my dog no longer hears me come home|heads turn at the lights].
A wider saddle and a second bottle holder on the Lark would spare my back.
A rear light that glows when the Lark brakes would suit the dark road to {station}.
Put a mirror on the left of the handlebar of the Lark, the trucks near {station} come close.
Rain, salt, the hill at {station}: gears and brakes of my Lark are as on the first day.
"""),
}
"""Core sentences about the Lark, by class."""
