"""What the FLARE 2024 organisers measure, on anyone's machine.

Scores label folders by the challenge's rules (`evaluation.scoring`), compares two of them
(`evaluation.comparison`), makes labelled CTs harder (`evaluation.variants`), times the container
case by case (`evaluation.timing`), puts our engine beside others (`evaluation.benchmark`) and
packs the image as the organisers load it (`evaluation.package`). The commands are those of
``python -m evaluation --help``.
"""

import inference  # noqa: F401  (first of all: it keeps OpenVINO from reporting over the network)
