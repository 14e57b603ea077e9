"""CTs that are stored as DICOM: which files are a series, how its slices lie, their pixels."""
