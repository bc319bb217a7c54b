"""A webhook for compose: checks the signature of each event (Standard Webhooks) and prints it."""

import base64
import hashlib
import hmac
import http.server
import json
import os

SECRET = base64.b64decode(os.environ["HOOK_SECRET"].removeprefix("whsec_"))


def is_signed(headers, body):
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.digest(SECRET, signed, hashlib.sha256)).decode()
    given = (part.partition(",")[2] for part in (headers["webhook-signature"] or "").split())
    return any(hmac.compare_digest(expected, one) for one in given)


class Sink(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(200)

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if not is_signed(self.headers, body):
            return self.answer(401)
        event = json.loads(body)
        print(event["type"], json.dumps(event["data"]), flush=True)
        self.answer(204)

    def answer(self, status):
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    port = int(os.environ.get("PORT", "8080"))
    http.server.ThreadingHTTPServer(("0.0.0.0", port), Sink).serve_forever()
