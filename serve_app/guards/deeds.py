"""Verbs that say the same as another only of some people, of some things, or of what is done on purpose. As patterns."""

from typing import Final

# What one does is what I do; what one parent does is not. "You" may be the one who is asked, "people" do what I do not.
DEED: Final = (
    r"(?!die\b)(?=(?:be|become|get|have|do|go|eat|learn|bring|see|choose|apply|avoid|obtain|enter|live|send|take|write|tell|"
    r"invest|believe|know|add|wear|carry|expect|prepare|use|start|make|find|buy|sell|keep)\b|\w+\W*$|\w+ (?:an?|the|to|up|off)\b)"
)
# What one may or may not: elsewhere, can I is whether it is possible, or wise: to fly with a cold, to drive after surgery.
PERMITTED: Final = (
    r"(?=(?:bring|park|camp|enter|leave|sublet|rent|build|sell|record|film|marry|own|buy|cancel|return|withdraw)\b|"
    r"(?:take|work|drive|ride|fly|wear|smoke|vape|hunt|carry|keep)\b"
    r"(?!.*\b(?:with|after|before|during|while|when|if|on|without|at|for|twins|triplets)\b))"
)
# How might I: elsewhere it asks for what might befall me (get cancer, lose my job), and how do I for the way to it.
INTENDED: Final = (
    r"(?=(?:learn|improve|apply|contact|cancel|change|create|write|fix|install|cook|bake|build|buy|sell|save|reduce|prepare|"
    r"remove|clean|plan|choose|check|send|open|book|register|login|download|convert|calculate|measure|teach|help|join|pay|invest|"
    r"store|enable|disable|reset|update|delete|use)\b)"
)
# Else the two may be one thing: climbing rope, burning wood, cooking oil, hunting dogs, housing in Rome.
DOING: Final = (
    r"(?!(?:housing|clothing|building|lighting|feeling|meeting|wiring|plumbing|heating|funding|bedding|flooring|packaging) "
    r"(?:in|at|on|for|from|with|near|under)\b)"
    r"(?=\w+ing (?:\d|(?:an?|the|my|your|our|his|her|their|this|that|these|those|any|some|all|too|so|raw|more|less|every|it|them|"
    r"in|at|on|to|for|from|with|without|after|before|during|while|near|under|through|off|out|up|down|alone|daily|online)\b)|"
    r"eating (?!(?:disorder|habit|contest|competition|apple|plan|place|utensil)s?\b)|"
    r"(?:taking|wearing|using|having|getting|giving|swallowing|downloading|skipping|reheating|refreezing|microwaving|mixing) "
    r"(?!(?:rope|stone|bowl|desk|console|board|glass|tube|reflex)s?\b)|"
    r"(?:learning|speaking|studying|teaching|visiting|entering|leaving|playing|watching|reading) (?-i:[A-Z])|"
    r"drinking (?:alcohol|coffee|tea|milk|beer|wine|juice|bleach|urine|seawater|rainwater|soda)\b|"
    r"smoking (?:weed|marijuana|cannabis|tobacco|cigarettes|cigars)\b)"
)
# Nurses are needed to run a hospital, parents are required to pay, weapons are needed for Ukraine: not by me.
NOBODY: Final = (
    r"(?!(?:\w+ ){0,2}(?:\w+(?:ers|ors|ists|ians|ees|men)|nurses|parents|people|pilots|staff|help|aid|blood|support|troops|"
    r"police) (?:needed|required)\b)"
)
_PAPERS: Final = r"(?<=visa |isas |port |rmit |mits |ense |cket |ines |ions |hots |ance |test )"
NEEDED: Final = (
    rf"(?:needed (?=to\b|for (?-i:[a-z\d]))|required (?=for (?-i:[a-z\d]))|{_PAPERS}(?:needed|required) (?=to\b|for\b))"
)
# One may also get in touch with an inner child, one's feelings, nature.
CALLED: Final = (
    r"(?!.*\b(?:inner|spirits?|god|jesus|allah|heaven|nature)\b)(?:(?:the|an?|my|your|our) )?"
    r"(?:(?!(?:of|at|in|on|for|with|and|to)\b)\w+ ){0,3}?(?:you|someone|somebody|support|services?|team|office|"
    r"department|desk|bank|landlord|landlady|doctor|gp|dentist|surgery|hospital|school|teacher|professor|agent|agency|lawyer|"
    r"company|airline|embassy|consulate|council|seller|buyer|manager|hr|hotel|restaurant|police|insurer|provider|supplier|host|"
    r"driver|courier|staff|recruiter|employer|electrician|plumber|technician|(?-i:[A-Z]\w+))"
    r"(?: (?:for|about|by|if|in|at|on)\b|\W*$)"
)
TRACE: Final = r"(?:stains?|limescale|rust|scratch(?:es)?|mou?ld|tattoos?|malware|adware|wrinkles)"  # but: get rid of old paint
# To activate a phone is not to turn it on.
NO_DEVICE: Final = (
    r"(?! (?:(?:my|the|an?|your|our) )?(?:\w+ )?(?:i?phone|cellphone|smartphone|mobile|computer|laptop|pc|mac|macbook|i?pad|"
    r"tablet|kindle|tv|television|watch|camera|console|xbox|playstation|ps[45]|router|modem|printer|car)s?\b)"
)
