"""What goes wrong in a federation, made to go wrong; each method names the alerts that it is for.

The order matters: a hospital can only send NaN while rounds run, and a control plane that was
killed tells Prometheus nothing any more.
"""

import base64
import datetime as dt
import time

import psutil

from certs import CA
from certs.rotation import refresh_lists, rotate_client, rotate_server
from fedward.coordinator import Coordinator
from protocol.control import FLEET_PREFIX, INGEST_EVENTS, STUDIES, Role
from protocol.events import StudyEnded
from protocol.messages import Gpu
from protocol.registry import load_registry
from protocol.states import StudyState, TrainerState
from server._flower import KEY_HEADER, PROTOBUF, node_key_bytes

from .factories import Story, certificate, health
from .live import Live, fill
from .monitoring import Alertmanager, Prometheus

GPUS = tuple(
    Gpu(
        index=index,
        memory_used_bytes=6 << 30,
        memory_total_bytes=24 << 30,
        utilisation=0.9,
        temperature_celsius=65.0,
    )
    for index in range(2)
)


class Faults:
    """Each is a fault of a running federation."""

    def __init__(self, live: Live, prometheus: Prometheus, alertmanager: Alertmanager) -> None:
        self.live, self.prometheus, self.alertmanager = live, prometheus, alertmanager

    # -- without hurting anything ------------------------------------------------------------

    def bad_reports(self) -> None:
        """A hospital reports what no test can afford: GpuLost, GpuHot, GpuMemoryFull, ClockOff,
        TrainerBroken."""
        full = {"memory_used_bytes": int(23.9 * 2**30), "temperature_celsius": 93.0}
        broken = health(gpus=(GPUS[0].model_copy(update=full),), state=TrainerState.BROKEN)
        self.live.report(health=broken, sent_at=time.time() + 4)

    def guesses(self) -> None:
        """Tokens are tried: Guessing."""
        with self.live.client() as client:
            for number in range(25):
                client.get(STUDIES, headers={"authorization": f"Bearer guess-{number}"})

    def stranger(self) -> None:
        """Somebody who knows a hospital's public key and nothing else: NodeRefused."""
        site = load_registry(self.live.paths.sites_file).sites["alder"]
        headers = {
            "content-type": PROTOBUF,
            KEY_HEADER.decode(): base64.b64encode(node_key_bytes(site)).decode(),
        }
        with self.live.client("fleet") as client:
            for _ in range(6):
                answer = client.post(FLEET_PREFIX + "pull-messages", headers=headers)
                assert answer.status_code == 401, answer.text

    def too_many_bytes(self) -> None:
        """One hospital of four moves fifty megabytes more than the others: BytesAnomaly."""
        story = Story("odd-0a1b2c", start=time.time() - 60)
        sites = ("elm", "fir", "hazel", "ivy")
        with self.live.client(role=Role.AGGREGATOR) as client:
            for events in (
                [*story.beginning(sites), *story.a_round(1, sites)],
                [
                    story.result("elm", 2, bytes_up=50_000_000),
                    story.make(StudyEnded, state=StudyState.FINISHED, rounds=2, verdict="x"),
                ],
            ):
                body = [event.model_dump(mode="json") for event in events]
                assert client.post(INGEST_EVENTS, json=body).status_code == 200
                time.sleep(3)  # an increase needs a scrape before it

    def short_certificates(self) -> None:
        """Leaves and a list that end soon, by the CA itself: CertificateExpires30d, 7d and 1d,
        RevocationListEnds."""
        paths = self.live.paths
        ca = CA.load(paths.ca_folder)
        day = dt.timedelta(days=1)
        # An old one that lived long, which a CA of today cannot have signed.
        old, _ = certificate(self.live.folder, days=20, age=60)
        old.replace(paths.coordinator.cert)
        rotate_client(ca, paths.operator.folder, paths.registry, lifetime=3 * day)
        rotate_server(ca, paths.aggregator.folder, paths.registry, lifetime=day / 2)
        refresh_lists(ca, [paths.aggregator.folder], lifetime=day / 2)

    def full_disks(self) -> None:
        """Files fill the small disks: DiskFilling, ControlPlaneDiskFilling."""
        for disk in filter(None, self.live.disks):
            fill(disk, 0.08)

    def restarting_trainer(self) -> None:
        """kill -9 of a trainer, three times: TrainerRestarting."""
        for count in range(3):
            self.live.restart("cedar-trainer")
            self.live.wait(
                "the new trainer's first report",
                lambda count=count: any(
                    node.site == "cedar" and node.trainer_restarts > count
                    for node in self.live.plane.nodes()
                ),
            )

    # -- in a study --------------------------------------------------------------------------

    def wedge(self) -> None:
        """birch's node lives and does nothing: its link, executor and app are frozen. NodeWedged;
        with it, each of its rounds is late."""
        link = self.live.children["birch-link"].pid
        executors = self.live.family("birch-link", "hospital_node.link.executor")
        self.live.freeze(psutil.Process(link), *executors)

    def not_a_number(self) -> None:
        """cedar's updates hold NaN from now on: UpdateNotFinite."""
        self.live.door.spoils = True

    def too_few(self, study_id: str) -> None:
        """Two of three are no use, so rounds are skipped: TooFewSites, SiteFailing, StudyFailed."""
        self.live.wait("the failure", lambda: self.live.plane.study(study_id).state.ended, 300)
        assert self.live.plane.study(study_id).state is StudyState.FAILED

    def away(self) -> None:
        """cedar's link and trainer are stopped: NodeDown."""
        for name in ("cedar-link", "cedar-trainer"):
            self.live.children[name].stop(20)

    def shaken(self) -> str:
        """A study of alder alone whose learning rate is absurd (LossDiverging), whose node is
        killed in a round (requests sent again), whose ServerApp is killed three times
        (StudyInterrupted)."""
        live = self.live
        rounds = {"count": 500, "minimum_sites": 1, "deadline_seconds": 30}
        study_id = live.study(
            "shaken", sites=["alder"], rounds=rounds, training={"learning_rate": 3.0}
        )
        live.wait("three rounds", lambda: live.plane.study(study_id).rounds_done >= 3)
        live.family("alder-link", "hospital_node.link.supernode")[0].kill()
        done = live.plane.study(study_id).rounds_done
        live.wait("the node is back", lambda: live.plane.study(study_id).rounds_done > done + 1)
        for count in range(1, 4):
            live.wait("a ServerApp", lambda: live.family("aggregator", "flwr-serverapp"))[0].kill()
            live.wait(
                "it is resumed",
                lambda count=count: (
                    (study := live.plane.study(study_id)).interruptions >= count
                    and study.state is StudyState.RUNNING
                ),
            )
        return study_id

    def waiting(self) -> str:
        """A study that waits for the one before it: StudyNotStarting."""
        return self.live.study("waiting", sites=["alder"], rounds={"minimum_sites": 1})

    def stalled(self, study_id: str) -> None:
        """The ServerApp freezes in the middle of a round: RoundStalled."""
        live = self.live
        live.wait("a round", lambda: live.plane.study(study_id).deadline_at)
        while True:
            (app, *_) = live.family("aggregator", "flwr-serverapp")
            app.suspend()
            time.sleep(1.5)  # what was on its way has arrived
            if live.plane.study(study_id).deadline_at:
                break
            app.resume()
            time.sleep(0.3)
        live.freeze(app)

    # -- at the aggregator -------------------------------------------------------------------

    def blind(self) -> None:
        """The supervisor freezes: ControlPlaneBlind."""
        self.live.freeze(psutil.Process(self.live.children["aggregator"].pid))

    def revoked(self) -> None:
        """alder is revoked, and nobody shuts its node out: RevokedNodeActive."""
        Coordinator.open(self.live.folder).revoke("alder", "a test of the alert")

    def gone(self) -> None:
        """kill -9 of the control plane: ControlPlaneDown."""
        self.live.kill("control-plane")
