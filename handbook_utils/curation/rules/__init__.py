"""The rules of curation: one table of them, and what each looks for in a row"""
