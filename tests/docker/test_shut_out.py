"""A hospital is revoked in the middle of a study. The last test here: it does not come back."""

import time

from stack import PROJECT, Stack, compose, docker


def test_a_revoked_hospital_is_out_within_ten_seconds_and_the_others_finish(stack: Stack) -> None:
    study = stack.submit("shut-out", 6, minimum_sites=1)
    stack.wait_round(study, 1, 300)
    begin = time.monotonic()
    compose("run", "--rm", "-T", "--no-deps", "certs", "revoke", "hospital-b")
    revoked = time.monotonic()
    code = "import json; print(json.load(open('/state/link/forwarder.json'))['trouble'])"
    stack.wait(
        lambda: "was revoked" in stack.python("hospital-b-link", code), 60, "the site's own words"
    )
    print(f"revoked in {revoked - begin:.1f} s, known to the site {time.monotonic() - revoked:.1f}")
    log = docker("logs", stack.container("hospital-b-link")["Id"], check=False)
    assert "this site's certificate was revoked" in log
    finished = stack.wait_finished(study, 900)
    sites = {site["site"]: site for site in finished["sites"]}
    assert sites["hospital-a"]["rounds_ok"] == finished["rounds_total"]
    # Its health check asks whether the aggregator answered within the last minute.
    stack.wait(lambda: stack.health("hospital-b-link") == "unhealthy", 180, "link is not well")
    compose("restart", "edge")
    stack.wait(lambda: stack.health("edge") == "healthy", 120, PROJECT)
    stack.wait(
        lambda: "was revoked" in stack.python("hospital-b-link", code), 60, "the new edge's word"
    )
