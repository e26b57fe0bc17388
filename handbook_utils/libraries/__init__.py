"""What differs between releases of the libraries we stand on, and which releases were tested."""
