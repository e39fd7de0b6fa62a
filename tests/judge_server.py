"""An OpenAI-compatible server on the loopback address, which replies as a test says."""

import contextlib
import http.server
import json
import threading


class Server:
    """A server that replies by a function of (message, number of the request)."""

    def __init__(self, reply):
        self.requests, self.reply, self.lock = [], reply, threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                content = self.rfile.read(int(self.headers["Content-Length"]))
                body = json.loads(content)
                with outer.lock:
                    outer.requests.append((self.path, dict(self.headers), body))
                    number = len(outer.requests)
                status, found = outer.reply(body["messages"][0]["content"], number)
                data = found if isinstance(found, bytes) else json.dumps(found).encode()
                self.send_response(status)
                if status == 307:
                    self.send_header("Location", found.decode())
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@contextlib.contextmanager
def serving(reply):
    server = Server(reply)
    thread = threading.Thread(target=server.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.server.shutdown()
        server.server.server_close()
        thread.join()


def said(text):
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}
