"""From a CT to what the network sees: turned, cropped to the patient, resized, normalised."""
