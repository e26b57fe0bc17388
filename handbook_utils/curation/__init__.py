"""People's data before training: looked at, curated by named rules, and compared with what is tested on"""
