"""A synthetic abdominal CT with all 13 organs, made of formulas alone: no patient, no data.

Solids (ellipsoids, bent tubes and what can be cut from them) are painted one over the other in a
patient's coordinates: millimetres, x to the left, y to the back, z to the head, the origin in
front of the first lumbar vertebra. Sizes and places follow anatomy atlases. The idea is that of
the XCAT phantom (Segars et al., Med. Phys. 2010), in numpy and small enough to read.

It serves the demo, the tests and timing. Networks can be pretrained on it; it is no patient, and
no accuracy measured on it says anything about patients.

`patient.py` draws sizes and HU, `anatomy.py` lists the solids (`solids.py`) and what HU they have
inside (`intensities.py`), `painting.py` paints them into slices, `volume.py` makes images of these.
"""

from inference.phantom.patient import PHASES
from inference.phantom.volume import make_phantom

__all__ = ["PHASES", "make_phantom"]
