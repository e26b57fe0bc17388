"""Claims, pictures, the report, and what keeps them true."""
