"""DAM, the Describe Anything model, batched over objects and videos."""
