"""Ten misuses that a type checker must flag; never run. Each wrong line ends in a comment that says so."""

# ruff: noqa: B018
import lens_linear as ll

model = ll.load("attn-2l")
tokens = ll.evaluation_tokens(model)
profile = ll.linearity_profile(model, tokens)
ll.linearity_profile(42, tokens)  # wrong: no model
ll.linearity_profile(model, tokens, nonsense=True)  # wrong: no such argument
ll.linearity_profile(model, tokens, fit="magic")  # wrong: no such choice
ll.nothing_at_all  # wrong: no such name
profile.scoers  # wrong: a misspelt field
profile.sort_values("block_r2")  # wrong: a DataFrame's method
profile.n_tokens = 3  # wrong: results are frozen
ll.load()  # wrong: an argument is missing
ll.composition_scores(model).plot(1)  # wrong: options have names
ll.circuits.no_such_analysis(model)  # wrong: no such name in a room
