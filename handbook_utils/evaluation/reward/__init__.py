"""Is a reward model good: right, calibrated, unmoved by length, and better than a ruler?"""
