"""Keys of rows and messages in the words of other tools: heeded, refused by name, or told to be unread."""
