"""The script by which a machine deletes itself. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from dask_cloudvm.clouds.azure_versions import COMPUTE

PATIENCE = 720  # seconds for which a machine tries to delete itself; see TimeoutStopSec of its unit


def gone(identities: Sequence[str], endpoint: str) -> str:
    """The script by which a machine deletes itself, by one of these identities; else it deallocates itself.

    A machine that only switches off is billed on.
    """
    if not identities:
        return ""
    text = _GONE.replace("@IDENTITIES@", repr(list(identities))).replace("@ENDPOINT@", endpoint)
    return text.replace("@VERSION@", COMPUTE).replace("@PATIENCE@", str(PATIENCE))


# A role takes up to ten minutes until all of Azure knows it.
# https://learn.microsoft.com/en-us/azure/virtual-machines/instance-metadata-service
_GONE = """\
exec /usr/bin/python3 - <<'END'
import json, time, urllib.error, urllib.parse, urllib.request

def get(what, **query):
    url = "http://169.254.169.254/metadata/" + what + "?" + urllib.parse.urlencode(query)
    request = urllib.request.Request(url, headers={"Metadata": "true"})
    open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
    return json.loads(open(request, timeout=10).read())

def ask(method, url, token):
    headers = {"Authorization": "Bearer " + token, "Content-Length": "0"}
    urllib.request.urlopen(urllib.request.Request(url, headers=headers, method=method), timeout=30)

def attempt(identity):
    which = {"msi_res_id": identity} if identity else {}
    query = {"api-version": "2018-02-01", "resource": "@ENDPOINT@/", **which}
    try:
        token = get("identity/oauth2/token", **query)["access_token"]
        machine = get("instance/compute", **{"api-version": "2021-02-01"})["resourceId"]
    except Exception as error:
        return str(error), True, 0
    why, again, wait = "", False, 0
    for method, verb in (("DELETE", ""), ("POST", "/deallocate")):
        try:
            ask(method, "@ENDPOINT@" + machine + verb + "?api-version=@VERSION@", token)
            return None
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            why = str(error) + " " + error.read().decode(errors="replace")[:500]
            again = again or error.code in (401, 403, 408, 409, 429) or error.code >= 500
            after = error.headers.get("Retry-After") or ""
            wait = max(wait, int(after) if after.isdigit() else 0)
        except Exception as error:
            why, again = str(error), True
    return why, again, wait

def end():
    stop, pause = time.monotonic() + @PATIENCE@, 1
    while True:
        failed = []
        for identity in @IDENTITIES@:
            outcome = attempt(identity)
            if outcome is None:
                return
            failed.append(outcome)
        left = stop - time.monotonic()
        if left <= 0 or not any(again for _, again, _ in failed):
            break
        time.sleep(min(max(pause, *(wait for _, _, wait in failed)), left))
        pause = min(2 * pause, 30)
    why = failed[-1][0]
    print("This machine can neither delete nor deallocate itself. It switches off, and is billed on:", why)

end()
END
"""
