"""Small linear systems that predict the gains."""
