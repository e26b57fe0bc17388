"""What a judge's preferences are worth: without length, without position, corrected by people's labels."""
