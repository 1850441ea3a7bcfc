#!/usr/bin/env python3
"""Passes notices of cdc_archiver on, by mail, to a chat's webhook, to a dead man's switch: docs/notices.md has the objects.

notify_command = "/usr/local/bin/notice.py --mail operator@example.org --webhook https://hooks.slack.com/services/…"
"""

import argparse
import json
import smtplib
import sys
import urllib.request
from email.message import EmailMessage

parser = argparse.ArgumentParser(description="Reads one notice from standard input.")
parser.add_argument("--mail", metavar="ADDRESS", help="send it there")
parser.add_argument("--smtp", metavar="HOST:PORT", default="localhost:25", help="by this mail server")
parser.add_argument("--webhook", metavar="URL", help="post it there as Slack expects it: {'text': …}")
parser.add_argument("--ping", metavar="URL", help="ask for this at each daily notice: https://hc-ping.com/…")
options = parser.parse_args()


def post(url: str, body: bytes) -> None:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10):
        pass


notice = json.load(sys.stdin)
subject = " ".join(f"cdc_archiver on {notice['service']}: {notice['text']}".split())
if options.ping and notice["kind"] == "daily":
    post(options.ping, json.dumps(notice).encode())
if options.webhook:
    post(options.webhook, json.dumps({"text": subject}).encode())
if options.mail:
    message = EmailMessage()
    message["From"] = message["To"] = options.mail
    message["Subject"] = subject[:200]
    message.set_content(json.dumps(notice, indent=2))
    host, _, port = options.smtp.rpartition(":")
    with smtplib.SMTP(host, int(port), timeout=10) as server:
        server.send_message(message)
