"""The real Codex CLI, driven by a test: `codex exec` plays one turn, `codex app-server` several."""

import json
import os
import subprocess
import threading

from parts import Failure, check, wait_for

TURN_SECONDS = 90


class Codex:
    """A home folder for Codex, configured as the article says, with the address of this deployment."""

    def __init__(self, world, program, name):
        self.world = world
        self._program, self._name = program, name
        self._home = world.parts.path(f"{name}-home")
        os.makedirs(os.path.join(self._home, "work"))
        world.parts.path(f"{name}-home/config.toml", self._configuration())
        self._runs = 0
        # State that one scenario leaves to the next: the requests of one session.
        self.first = []

    def _configuration(self):
        return f"""
model_provider = "warmkey"
model = "gpt-5.4"
model_reasoning_effort = "xhigh"
plan_mode_reasoning_effort = "xhigh"
model_reasoning_summary = "none"
model_verbosity = "medium"
model_context_window = 1050000
model_auto_compact_token_limit = 945000
tool_output_token_limit = 6000
approval_policy = "never"
sandbox_mode = "danger-full-access"
suppress_unstable_features_warning = true
[model_providers.warmkey]
name = "OpenAI"
base_url = "http://{self.world.recorder.address}"
wire_api = "responses"
requires_openai_auth = false
env_key = "WARMKEY_TOKEN"
supports_websockets = true
[features]
responses_websockets_v2 = true
[analytics]
enabled = false
"""

    def _start(self, arguments, by_socket, **options):
        """Codex over HTTP, without `supports_websockets`."""
        self._runs += 1
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": self._home,
            "CODEX_HOME": self._home,
            "NO_PROXY": "127.0.0.1",
            "WARMKEY_TOKEN": self.world.token,
        }
        transport = ["-c", f"model_providers.warmkey.supports_websockets={str(by_socket).lower()}"]
        name = f"{self._name}-{self._runs}"
        command = [self._program, *arguments[:1], *transport, *arguments[1:]]
        return name, self.world.parts.start(name, command, environment, cwd=os.path.join(self._home, "work"), **options)

    def doctor(self):
        """What `codex doctor` found, by the id of each check."""
        said = self.world.parts.path(f"{self._name}-{self._runs + 1}.out")
        with open(said, "wb") as output:
            _, child = self._start(["doctor", "--json"], True, output=output)
        child.wait(TURN_SECONDS)
        with open(said, encoding="utf-8") as text:
            return json.load(text)["checks"]

    def exec(self, *arguments, by_socket):
        """Starts `codex exec`: one turn."""
        said = self.world.parts.path(f"{self._name}-{self._runs + 1}.out")
        before = len(self.world.recorder.exchanges)
        with open(said, "wb") as output:
            name, child = self._start(["exec", "--skip-git-repo-check", *arguments], by_socket, output=output)
        return Run(self.world, name, child, before, said)

    def talk(self, by_socket=True, **thread):
        """Starts `codex app-server`, which begins a thread or resumes `thread`."""
        before = len(self.world.recorder.exchanges)
        name, child = self._start(["app-server"], by_socket, feed=subprocess.PIPE, output=subprocess.PIPE)
        return Talk(self.world, name, child, before, **thread)


class Process:
    """One process of Codex, and its exchanges over the wire."""

    def __init__(self, world, name, child, before):
        self.world, self._name, self._child = world, name, child
        # Which of the recorder's exchanges belong to this process.
        self._before, self._after = before, None

    @property
    def exchanges(self):
        """Requests of Codex for the model. Codex also asks for other things."""
        return [one for one in self.world.recorder.exchanges[self._before : self._after] if one.is_turn or one.wants_socket]

    @property
    def sockets(self):
        return [one for one in self.exchanges if one.is_socket]

    @property
    def session(self):
        sessions = {exchange.session for exchange in self.exchanges}
        check(len(sessions) == 1 and None not in sessions, f"one session was expected, not {sessions}")
        return sessions.pop()

    @property
    def log(self):
        """The process's standard error."""
        return self.world.parts.log(self._name)

    def stops(self):
        """Waits for the end of the process, and returns its exit code."""
        try:
            status = self._child.wait(TURN_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise Failure(f"codex did not end within {TURN_SECONDS} s") from error
        self._after = len(self.world.recorder.exchanges)
        return status

    def _end(self):
        status = self.stops()
        check(status == 0, f"codex ended with {status}")


class Run(Process):
    """`codex exec`."""

    def __init__(self, world, name, child, before, said):
        super().__init__(world, name, child, before)
        self._said = said

    def finish(self):
        """Waits for a successful end, and checks that the answer was printed."""
        self._end()
        done = self.exchanges[-1].events("response.output_text.done")
        check(done, f"the last answer has no text: {self.exchanges[-1].answer[-300:]!r}")
        with open(self._said, encoding="utf-8") as said:
            printed = said.read()
        check(done[-1]["text"].strip() in printed, f"the final message {done[-1]['text']!r} was not printed, but {printed!r}")


class Talk(Process):
    """`codex app-server`: several turns of one thread in one process, over JSON-RPC."""

    def __init__(self, world, name, child, before, **thread):
        super().__init__(world, name, child, before)
        self._heard = []
        self._asked = 0
        threading.Thread(target=self._listen, daemon=True).start()
        self._ask("initialize", clientInfo={"name": "warmkey_test", "version": "0"})
        self._say(method="initialized")
        method = "thread/resume" if thread else "thread/start"
        self.thread = self._ask(method, **thread)["thread"]["id"]

    def _listen(self):
        for line in self._child.stdout:
            self._heard.append(json.loads(line))

    def _say(self, **message):
        self._child.stdin.write(json.dumps(message).encode() + b"\n")
        self._child.stdin.flush()

    def _ask(self, method, **params):
        self._asked += 1
        number = self._asked
        self._say(method=method, id=number, params=params)
        answers = lambda: next((one for one in list(self._heard) if one.get("id") == number and "method" not in one), None)
        answer = wait_for(f"answer to {method}", answers, 30)
        check("result" in answer, f"{method} was answered with {answer}")
        return answer["result"]

    def notices(self, method):
        """The events of one kind so far, in order."""
        return [one["params"] for one in list(self._heard) if one.get("method") == method]

    def begin(self, text):
        """Starts a turn without waiting for its end, and returns its id."""
        return self._ask("turn/start", threadId=self.thread, input=[{"type": "text", "text": text}])["turn"]["id"]

    def end(self, turn, status="completed"):
        """Waits for the end of a turn, and returns the last message of the agent."""
        ends = lambda: next((one["turn"] for one in self.notices("turn/completed") if one["turn"]["id"] == turn), None)
        ended = wait_for("end of a turn", ends, TURN_SECONDS)
        check(ended["status"] == status, f"a turn ended as {ended}")
        items = [one["item"] for one in self.notices("item/completed") if one["turnId"] == turn]
        said = [item["text"] for item in items if item["type"] == "agentMessage"]
        return said[-1] if said else None

    def turn(self, text):
        return self.end(self.begin(text))

    def compact(self):
        """Makes Codex replace the history of the thread by a shorter one."""
        before = len(self.notices("turn/completed"))
        self._ask("thread/compact/start", threadId=self.thread)
        wait_for("shorter history", lambda: len(self.notices("turn/completed")) > before, TURN_SECONDS)

    def interrupt(self, turn):
        self._ask("turn/interrupt", threadId=self.thread, turnId=turn)

    def errors(self):
        """The failures that the user saw, retries included."""
        return [one["error"]["message"] for one in self.notices("error")]

    def finish(self):
        self._child.stdin.close()
        self._end()
