"""Every state, named once. `docs/states.md` draws them; a test holds the two together."""

from enum import StrEnum


class StudyState(StrEnum):
    """Where a study is."""

    QUEUED = "queued"  # submitted, not yet started by the supervisor
    RUNNING = "running"  # a ServerApp is working on it
    INTERRUPTED = "interrupted"  # its ServerApp died; the supervisor will resume it
    FINISHED = "finished"  # every round ended and the adapter was written
    FAILED = "failed"  # the study's own verdict: it cannot go on, and why
    STOPPED = "stopped"  # a person stopped it

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to the study."""
        return self in {StudyState.FINISHED, StudyState.FAILED, StudyState.STOPPED}


class SiteOutcome(StrEnum):
    """What became of one site in one round."""

    OK = "ok"  # its update is in the aggregate
    LATE = "late"  # no answer before the deadline
    REFUSED = "refused"  # it answered, and the answer was not acceptable (see the reason)
    FAILED = "failed"  # it answered that it could not do the work (see the reason)
    LOST = "lost"  # Flower says that the node is gone


class TrainerState(StrEnum):
    """What a hospital's trainer is doing."""

    STARTING = "starting"  # the process is up, nothing is loaded
    LOADING = "loading"  # reading and quantizing the base model, tokenizing the data
    IDLE = "idle"  # resident and waiting
    TRAINING = "training"
    EVALUATING = "evaluating"
    BROKEN = "broken"  # it cannot work until a person mends something (see the reason)


class Reason(StrEnum):
    """Why something was refused or failed: codes travel, exception texts never do.

    An exception's text can quote a patient record, so a site answers with one of these and keeps
    the text in its own log.
    """

    # the site's own state
    MODEL_UNREADABLE = "model_unreadable"
    MODEL_MISMATCH = "model_mismatch"  # the base model's hash is not the one the study names
    DATA_UNREADABLE = "data_unreadable"
    DATA_EMPTY = "data_empty"
    SITE_FORBIDS = "site_forbids"  # the site's settings do not allow what the study asks
    OUT_OF_MEMORY = "out_of_memory"
    OUTBOUND_REFUSED = "outbound_refused"  # the guard found something that must not leave
    TRAINER_ERROR = "trainer_error"
    TRAINER_UNREACHABLE = "trainer_unreachable"
    LINK_ERROR = "link_error"
    INTERRUPTED = "interrupted"  # the ClientApp was told to stop while it worked
    NOT_HELD = "not_held"  # the site lacks what a change is to be added to, and needs the whole
    # what is wrong with a message
    MALFORMED = "malformed"
    WRONG_STUDY = "wrong_study"
    WRONG_ROUND = "wrong_round"
    WRONG_SITE = "wrong_site"
    WRONG_MANIFEST = "wrong_manifest"
    WRONG_SHAPE = "wrong_shape"
    NOT_FINITE = "not_finite"
    NORM_TOO_LARGE = "norm_too_large"
    BAD_SIGNATURE = "bad_signature"
    REPLAYED = "replayed"
    DUPLICATE = "duplicate"
    # what Flower says
    NODE_UNAVAILABLE = "node_unavailable"
    REVOKED = "revoked"  # the coordinator shut the site out while it worked
    CLIENT_APP_DIED = "client_app_died"
    FLOWER_ERROR = "flower_error"
    TOO_LATE = "too_late"
