"""The commands `handbook data ...`: look at data, curate it, compare it with what is tested on"""
