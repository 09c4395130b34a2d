"""Nchan, pub/sub in C inside nginx: one worker process, a channel in its memory, published to by POST.

From Debian's `nginx` (which must be installed) and `libnginx-mod-nchan` (unpacked). Known traps: its default of ten buffered messages makes a
new subscriber read old news first, so `nchan_subscriber_first_message newest`; pings are off, for they would cost it what ours cost later;
several workers would need another process's copy of every message, and one core is what we compare.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

from bench.peers.place import Missing, Peer, Running, debian_version, folder, from_debian, serving, some_port

CONFIG = """load_module {module};
daemon off; master_process off; worker_processes 1; worker_rlimit_nofile 200000;
pid {where}/nginx.pid; error_log {where}/error.log error;
events {{ worker_connections 60000; use epoll; multi_accept on; }}
http {{
  access_log off; keepalive_requests 1000000; keepalive_timeout 3600;
  client_body_temp_path {where}/body; proxy_temp_path {where}/proxy; fastcgi_temp_path {where}/fastcgi;
  uwsgi_temp_path {where}/uwsgi; scgi_temp_path {where}/scgi;
  nchan_shared_memory_size 512M;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /sub {{ nchan_subscriber websocket; nchan_channel_id crowd; nchan_subscriber_first_message newest; nchan_websocket_ping_interval 0; }}
    location = /pub {{ nchan_publisher http; nchan_channel_id crowd; nchan_message_buffer_length 1; nchan_message_timeout 5s; }}
  }}
}}
"""


NGINX = ("nginx", "/usr/sbin/nginx")


@contextlib.contextmanager
def _start() -> Iterator[Running]:
    where, port = folder("nchan"), some_port()
    module = from_debian("nchan", "libnginx-mod-nchan") / "usr/lib/nginx/modules/ngx_nchan_module.so"
    (where / "nginx.conf").write_text(CONFIG.format(module=module, where=where, port=port))
    with serving([_nginx(), "-p", str(where), "-c", str(where / "nginx.conf")], port) as running:
        yield running


def _nginx() -> str:
    found = next(filter(None, map(shutil.which, NGINX)), None)
    if found is None:
        raise Missing("there is no nginx on this machine (Debian: apt-get install nginx-light)")
    return found


def peer() -> Peer:
    _nginx()  # nothing is fetched for one that cannot start
    from_debian("nchan", "libnginx-mod-nchan")
    return Peer("Nchan", debian_version("nchan"), _start, "/sub")
