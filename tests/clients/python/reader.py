"""Reads a namespace's events with the official Python client, and prints one line of JSON for each.

It is not a test: tests/real_clients.rs starts it and judges what it printed.
usage: reader.py custom|dynamic|list KUBECONFIG NAMESPACE
"""

import json
import sys
import time

from kubernetes import client, config, watch
from kubernetes.dynamic import DynamicClient

GROUP, VERSION, RESOURCE = "audit.k8s.io", "v1", "namespacedevents"

# The library comes back by itself after this many seconds, several times in a scenario.
SHORT_WATCH_SECONDS = 5

# It comes back late, so that there is something to resume: kube-apiserver sends a batch every second.
AWAY_SECONDS = 2


def custom(api: client.ApiClient, namespace: str):
    """watch.Watch over CustomObjectsApi. Without bookmarks it has no place to come back to until an event came, and stops."""
    objects = client.CustomObjectsApi(api)

    def events(**options):
        # Given to stream() itself, a timeout would end the loop instead of the watch.
        options["timeout_seconds"] = SHORT_WATCH_SECONDS
        if "resource_version" in options:
            time.sleep(AWAY_SECONDS)
        return objects.list_namespaced_custom_object(GROUP, VERSION, namespace, RESOURCE, **options)

    # Else it guesses the type from the function's docstring, and without one keeps no resourceVersion.
    for event in watch.Watch(return_type="object").stream(events, allow_watch_bookmarks=True):
        yield event["type"], event["object"]


def dynamic(api: client.ApiClient, namespace: str):
    """The dynamic client's own watch, which finds the resource by discovery."""
    events = DynamicClient(api).resources.get(api_version=f"{GROUP}/{VERSION}", kind="NamespacedEvent")
    for event in events.watch(namespace=namespace):
        yield event["type"], event["raw_object"]


def listing(api: client.ApiClient, namespace: str):
    """What does not work: the same call without a watch."""
    client.CustomObjectsApi(api).list_namespaced_custom_object(GROUP, VERSION, namespace, RESOURCE)
    return []


def main():
    mode, kubeconfig, namespace = sys.argv[1:]
    api = config.new_client_from_config(kubeconfig)
    # The audit log tells by it who asked for what.
    api.user_agent = f"python-{mode}"
    read = {"custom": custom, "dynamic": dynamic, "list": listing}[mode]
    for kind, event in read(api, namespace):
        metadata = event["metadata"]
        line = {"type": kind, "kind": event["kind"], "resourceVersion": metadata["resourceVersion"]}
        # A bookmark has the rest not.
        line.update(name=metadata.get("name"), auditID=event.get("auditID"), stage=event.get("stage"))
        print(json.dumps(line), flush=True)


main()
