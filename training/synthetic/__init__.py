"""Bodies and CTs that are made: from the label map of a patient's organs to a CT drawn for it.

A label map is brought to one spacing (`isotropic`), a whole-body map is laid over its organs
(`registration`) and lends what it lacks (`lent_organs`): a body of tissues (`bodies`). For each
patch, what no map shows is drawn into it (`neighbours`, `colon`, `pancreas`, made of `tubes`), then
Hounsfield units for its tissues (`mean_hu`, `intensities`), as a scanner would see them
(`scanner`).
"""
