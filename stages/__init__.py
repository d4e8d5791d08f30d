"""The stages of a fair retest. Each sub-package is one stage, `core` is what they share."""
