"""Which texts of one split stand in another: found before anything is trained."""
