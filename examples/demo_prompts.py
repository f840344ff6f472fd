"""What the demo asks. The first prompt is long on purpose: its KV is what has to hide behind prefill."""

from __future__ import annotations

_LETTER = """
The night shift at the observatory begins before sunset, when the dome is opened so that the mirror can cool with
the air around it. A warm mirror makes its own weather: a thin layer of rising air bends the light and the stars swim
in the eyepiece like pebbles in a brook. So Marta arrives early, signs the log, and walks the long corridor under the
dome with a torch in her hand, checking that the drip trays are empty, that the cable wraps are free, and that nobody
has left a ladder where the telescope will swing. Then she climbs to the control room, makes tea, and reads the notes
that the day crew has left. Tonight there are three of them. The first says that the guide camera was replaced, and
that its readout is twice as fast as before but has a bright column near the left edge. The second says that the wind
will turn to the north after midnight and may bring dust. The third is a request from a student in another country,
who asks for twenty minutes on a faint galaxy, should the sky be good and the programme run ahead of time.

The programme is a list of fields to be observed in order, each with a priority, an exposure time and a limit on how
low in the sky it may be. Years ago the list was kept on paper and the observer crossed off the lines one by one. Now a
scheduler proposes the next field every few minutes, weighing the height of the field, the brightness of the moon, the
seeing that the last exposure showed, and the time that the telescope needs to move. Marta may accept the proposal or
refuse it. She accepts nearly always, but she keeps an eye on the clouds, which the scheduler sees only through a single
camera on the roof, and that camera has a spider living in its housing. Twice this month the spider has walked over the
lens and the scheduler has closed the dome in fear of a storm.

At nine the first exposure begins. Ten minutes later the image comes down the fibre to the computer under the stairs,
where it is corrected for the dust on the mirror, for the warm pixels of the detector, and for the curve of the field.
A copy is sent down the mountain over a radio link, which is slow when it rains. The pipeline at the institute takes the
copy apart into stars and galaxies, compares them with everything that was seen there before, and raises an alert when
something is new. Most alerts are asteroids, some are variable stars, a few are satellites that were brighter than they
should be, and once or twice in a year one of them is an exploding star in a galaxy so far away that its light left
before there were people to look up. For such an alert the rule is simple: stop the programme, turn the telescope to the
position, and take a spectrum before the light fades.

At half past one, when the wind has turned and the first dust can be felt between the teeth, the telephone rings. It is
the institute. One of the alerts of the last hour does not look like an asteroid, and it sits on the edge of a galaxy
that has never shown anything of interest. The galaxy is low in the west and will set behind the ridge in fifty minutes.
The dust is getting worse, and the rule says that the dome must be closed when the counter on the roof passes a limit.
The counter is at eighty per cent of the limit and rising. Marta looks at the number, at the clock and at the map of the
sky. The telescope needs four minutes to turn, the spectrograph six minutes to change its grating, and the exposure
itself takes half an hour if it is to show more than noise.
"""

PROMPTS: tuple[tuple[str, str, int], ...] = (
    (
        "long letter",
        _LETTER.strip()
        + "\n\nIn a few sentences: what must Marta decide, and what speaks for and against it?",
        48,
    ),
    ("capital", "What is the capital of France, and which river flows through it?", 40),
    ("haiku", "Write a short poem about a lighthouse in winter.", 48),
    ("code", "Write a Python function that returns the larger of two numbers.", 48),
    (
        "reason",
        "A train leaves at 9:40 and arrives at 11:05. How long does the journey take? Explain.",
        48,
    ),
)
"""(name, question, most new tokens)."""
