"""Two chains of events, each from one service to the next: ``kill -9`` at every step, and one effect of each event."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from tests.acceptance import services_checks as checks
from tests.acceptance.conftest import ON_EACH_MYSQL
from tests.acceptance.services_harness import Point, Role, ServicesInstallation
from tests.acceptance.services_publisher import USERS, Load
from tests.acceptance.workers import Worker
from tests.webhooks import WebhookServer, webhook_server

pytestmark = ON_EACH_MYSQL

pytest_plugins = ("tests.acceptance.services_fixtures",)

InstallServices = Callable[..., ServicesInstallation]

ROLES: tuple[Role, ...] = ("relay", "consumer")


class Chain:
    """The relays and consumers of two services, in the order in which an event comes by them."""

    def __init__(self, installation: ServicesInstallation, services: tuple[str, str], *, seed: int) -> None:
        self.installation = installation
        self.steps: list[tuple[str, Role]] = [(service, role) for service in services for role in ROLES]
        self.dice = random.Random(seed)
        self.workers: dict[tuple[str, Role], Worker] = {}
        for step in self.steps:
            self.start(step)

    def start(self, step: tuple[str, Role]) -> None:
        service, role = step
        begin = self.installation.relay if role == "relay" else self.installation.consumer
        self.workers[step] = begin(service)

    def fail_in_mid_work(self, points: dict[Role, Point]) -> None:
        """Kill each process in the middle of its work, until none is left; then start all again."""
        # The last step first: it has work as long as those before it do theirs.
        for step in reversed(self.steps):
            worker, point = self.workers[step], points[step[1]]
            self.installation.hold_at(worker, point)
            worker.kill9()
            self.installation.let_go(worker, point)
        for step in self.dice.sample(self.steps, len(self.steps)):
            self.start(step)

    def kill_one_by_one(self) -> None:
        """Kill each process at a random moment of its work; each is started again at once."""
        for step in reversed(self.steps):
            target = self._done(step) + self.dice.randint(1, 60)
            self.installation.wait(
                lambda step=step, target=target: self._done(step) >= target,
                f"{step} went on with its work",
                interval_s=0.002,
                alive=list(self.workers.values()),
            )
            self.workers[step].kill9()
            self.start(step)

    def finish(self) -> None:
        """Wait until all is done, and end all processes as one would."""
        alive = list(self.workers.values())
        self.installation.wait_until_all_done(alive=alive)
        for worker in alive:
            worker.stop()

    def _done(self, step: tuple[str, Role]) -> int:
        service, role = step
        statuses = self.installation.statuses(service)
        return int(statuses["consumed"] + (statuses["published"] if role == "relay" else 0))


def kill_at_every_step(chain: Chain, load: Load) -> None:
    """Kill every process three times while the load goes on, and work off the rest."""
    publishing = chain.installation.start_services_load(load)
    chain.fail_in_mid_work({"relay": "marks", "consumer": "effects"})
    chain.kill_one_by_one()
    chain.fail_in_mid_work({"relay": "marks", "consumer": "offsets"})
    publishing.stop()
    chain.finish()


def test_what_a_user_says_becomes_one_memory_job_whatever_is_killed(install_services: InstallServices) -> None:
    installation = install_services()
    chain = Chain(installation, ("agent", "memory"), seed=41)
    kill_at_every_step(chain, Load(prefix="c", subjects=["chat", "chat", "tokens"], pause_ms=40, seed=41))
    assert len(installation.payloads("agent", checks.CHAT)) > 300
    checks.check_chats(installation)
    checks.check_memory_jobs(installation)
    offered = [event_id for _, event_id, _ in installation.payloads("memory", checks.EXTRACT)]
    checks.check_journal(installation, by_handlers=offered)


def test_a_trigger_becomes_one_preview_and_one_notification_whatever_is_killed(
    install_services: InstallServices,
) -> None:
    with webhook_server() as server:
        installation = install_services(environment={"NOTIFICATION_ALLOWED_HOSTS": f"127.0.0.1:{server.port}"})
        checks.insert_tasks(installation)
        chain = Chain(installation, ("active-scheduler", "notification"), seed=42)
        kill_at_every_step(chain, Load(prefix="t", subjects=["trigger"], pause_ms=50, seed=42))
        assert len(installation.payloads("active-scheduler", checks.TRIGGERED)) > 300
        checks.check_previews(installation)
        checks.check_notification_records(installation)
        requested = [event_id for _, event_id, _ in installation.payloads("notification", checks.NOTIFY)]
        checks.check_journal(installation, by_handlers=requested)
        check_that_each_notification_is_sent_once(installation, server)


def check_that_each_notification_is_sent_once(installation: ServicesInstallation, server: WebhookServer) -> None:
    """Two deliverers share the records; users without a webhook are skipped."""
    reachable = {user: server.url(secret=f"of-user-{user}") for user in range(1, USERS + 1) if user % 5}
    installation.set_webhooks(reachable)
    deliverers = [installation.manage(f"deliverer-{n}", "deliver_notifications", "--once") for n in range(2)]
    for deliverer in deliverers:
        deliverer.wait(timeout_s=60)
    records = installation.database.query("SELECT id, user_id, preview_id, status FROM notification_records")
    assert records
    assert {(user in reachable, status) for _, user, _, status in records} == {(True, "sent"), (False, "skipped")}
    received = [
        (body["notification_id"], body["user_id"], body["preview_id"], request.path.rpartition("/")[2])
        for request, body in zip(server.received, server.bodies, strict=True)
    ]
    assert Counter(received) == Counter(
        (record_id, user, preview, f"of-user-{user}")
        for record_id, user, preview, status in records
        if status == "sent"
    )
    again = installation.run("deliver_notifications", "--once")
    assert again.returncode == 0, again.stderr
    assert "sent 0," in again.stdout
