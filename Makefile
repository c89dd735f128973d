.PHONY: demo test bench-load bench-peers bench-gpu

# A cluster on this machine that answers a question: one command. KEEP=1: it stays up.
demo:
	@KEEP=$(KEEP) bash demo/run.sh

# Everything that can be tested here; what can't is listed as skipped.
test:
	@bash .ci/test

# A load that grows until the demo's cluster can't keep up, its answers verified; writes a page.
bench-load:
	@THEN=bench/load.sh bash demo/run.sh

# llama.cpp's processor backend beside ours, on the same weights; builds it first (minutes).
bench-peers:
	@bash bench/peers/run.sh

# What this machine's GPU and our kernels on it do, into bench/results/NAME.md (minutes; at most
# LIMIT seconds, if given), beside another engine that PEER times (bench/gpu.sh).
bench-gpu:
	@LIMIT="$(LIMIT)" PEER="$(PEER)" bash bench/gpu.sh "$(NAME)" "$(ADAPTER)"
