#!/usr/bin/env bash
# anthropic 2.14.0 (Python): `messages.create` and `messages.stream` have no temperature, top_p or
# top_k; who passes one gets a TypeError before anything is sent. 0.75.0 had all three.
#
# Whoever runs a model of their own behind Anthropic's API, where sampling parameters still mean
# something, has to send them by `extra_body`: they arrive at the top level of the body. Programs
# that pin no version stop working at their first call, whatever the server can do.
#
# Fails when the behaviour has changed. Needs python3 with venv, and half a minute.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat >ask.py <<'END'
import http.server, inspect, json, threading
import anthropic

bodies = []


class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        text = json.dumps({
            "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [],
            "stop_reason": "end_turn", "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 0},
        }).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


server = http.server.HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = anthropic.Anthropic(api_key="x", base_url=f"http://127.0.0.1:{server.server_port}")
asked = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}
names = ["temperature", "top_p", "top_k"]
for method in ["create", "stream"]:
    known = inspect.signature(getattr(client.messages, method)).parameters
    print(method, [name for name in names if name in known])
try:
    client.messages.create(**asked, temperature=0.5)
    print("argument", bodies[-1]["temperature"])
except TypeError:
    print("argument TypeError, requests sent:", len(bodies))
client.messages.create(**asked, extra_body={"temperature": 0.5})
print("extra_body", bodies[-1]["temperature"])
END
for version in 0.75.0 2.14.0; do
  python3 -m venv "v$version"
  "v$version/bin/pip" install --quiet --disable-pip-version-check "anthropic==$version"
  printf 'anthropic %s\n' "$version"
  "v$version/bin/python" ask.py | tee "$version.txt"
done
diff 0.75.0.txt - <<'END'
create ['temperature', 'top_p', 'top_k']
stream ['temperature', 'top_p', 'top_k']
argument 0.5
extra_body 0.5
END
diff 2.14.0.txt - <<'END'
create []
stream []
argument TypeError, requests sent: 0
extra_body 0.5
END
