.PHONY: demo test

# A cluster on this machine that answers a question: one command. KEEP=1: it stays up.
demo:
	@KEEP=$(KEEP) bash demo/run.sh

# Everything that can be tested here; what can't is listed as skipped.
test:
	@bash .ci/test
