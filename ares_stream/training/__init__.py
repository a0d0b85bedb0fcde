"""Making models: export, training and calibration. Torch lives here, in repair/ and in lab/."""
