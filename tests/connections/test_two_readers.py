"""The URL is read twice, by url.mjs and by database_url.py: they must make the same of whatever is in it."""

from __future__ import annotations

import json
import random
import subprocess
from typing import Any

from connections.agreement import SERVER
from pointsman.database_parts import Parts
from pointsman.database_url import libpq_url
from pointsman.errors import DatabaseError
from pointsman.migrations.install import node_binary

PIECES: dict[str, list[str]] = {
    "user": ["", "u@", "u:p@", "u%40x:p%3A%2F@", ":p@", "u:@", "a@b:c@", "u:p+q@", "u:%25@"],
    "authority": ["", "h", "h:1", "h:", "[::1]", "[::1]:7", "h1,h2", "h1:1,h2:2", "h1,[::1]:9", "%2Frun%2Fpg", "h:x", "h:0",
                  "h:70000", "[bad"],
    "path": ["", "/", "/d", "/d%20e", "/%2F"],
}  # fmt: skip
PARAMETERS = [
    "host=a", "host=a,b", "host=/run/pg", "hostaddr=10.0.0.1", "hostaddr=10.0.0.1,10.0.0.2", "port=5", "port=5,6", "port=x",
    "user=v", "password=w", "dbname=e", "schema=s", "sslmode=disable", "sslmode=prefer", "sslmode=require", "sslmode=verify-ca",
    "sslmode=verify-full", "sslaccept=strict", "sslcert=/c", "sslkey=/k", "sslrootcert=/r", "sslrootcert=system",
    "target_session_attrs=any", "requirepeer=x", "connection_limit=3", "application_name=a+b",
]  # fmt: skip
READ = f"""
const {{ parseUrl }} = await import({json.dumps((SERVER / "url.mjs").as_uri())});
const one = (url) => {{
  try {{
    const {{ hosts, user, client, database, tls, session }} = parseUrl(url);
    return {{ hosts: hosts.map(({{ host, port }}) => [host, port]), user, password: client.password, database, session,
      mode: tls.mode, authority: tls.authority }};
  }} catch (error) {{
    return error.constructor.name;
  }}
}};
const {{ stdin }} = process;
let text = '';
for await (const chunk of stdin) text += chunk;
process.stdout.write(JSON.stringify(JSON.parse(text).map(one)));
"""


def by_python(url: str) -> Any:
    try:
        parts = Parts.of(libpq_url(url))
        read = {"hosts": [[host.name, host.port] for host in parts.hosts], "user": parts.user, "password": parts.password}
    except DatabaseError:
        return "BadUrl"
    mode = parts.get("sslmode") or "prefer"
    authority = parts.get("sslrootcert")
    session = parts.get("target_session_attrs") or "any"
    read |= {"database": parts.database, "mode": mode, "authority": authority, "session": session}
    return {key: value for key, value in read.items() if value is not None}


def test_they_agree() -> None:
    dice = random.Random(1)
    urls = []
    for _ in range(4000):
        chosen = dice.sample(PARAMETERS, dice.choice([0, 0, 1, 1, 2, 3, 4]))
        query = "?" + "&".join(chosen) if chosen or dice.random() < 0.05 else ""
        urls.append("postgresql://" + "".join(dice.choice(values) for values in PIECES.values()) + query)
    command = [str(node_binary()), "--input-type=module", "-e", READ]
    done = subprocess.run(command, input=json.dumps(urls), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    different = {}
    for url, theirs in zip(urls, json.loads(done.stdout), strict=True):
        ours = by_python(url)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            for read in (ours, theirs):  # the machine's own: a path here, its name there; and without TLS nobody is asked
                bundle = str(read.get("authority", ""))
                read["authority"] = "system" if "ca-" in bundle or bundle.startswith("/etc") else bundle
                if read["mode"] == "disable":
                    del read["authority"]
        if ours != theirs:
            different[url] = (ours, theirs)
    assert not different, (len(different), dict(list(different.items())[:8]))
