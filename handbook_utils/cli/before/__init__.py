"""Commands that look before a run starts: `plan` and `preflight`."""
