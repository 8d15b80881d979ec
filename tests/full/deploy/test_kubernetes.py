"""The Helm chart and what it renders: valid, closed, and configured as the processes take it."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml
from pydantic import BaseModel

from retuned.consumers.settings import IngestSettings, KafkaSettings
from retuned.daemon.app import STOP_SECONDS
from retuned.daemon.gateway.app import FLUSH_SECONDS
from retuned.daemon.overrides import SECTIONS
from retuned.daemon.settings import Settings, load

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "retuned"
VALUES = DEPLOY / "helm" / "values.yaml"
MINIMAL = ("--set", "config.kafka.bootstrap_servers=broker:9092")
WATCHED = ("--values", str(VALUES), "--set", "monitoring.enabled=true,monitoring.labels.release=prometheus")
ENCRYPTED = (
    *WATCHED,
    "--set",
    "config.http.tls_certificate_file=/run/secrets/retuned/tls.crt,config.http.tls_key_file=/run/secrets/retuned/tls.key",
)
CLUSTER = (*WATCHED, "--values", str(VALUES.with_name("values.cluster.yaml")))
PROTECTED = (
    *CLUSTER,
    "--set-json",
    'config.kafka={"bootstrap_servers":"kafka-bootstrap.kafka:9092","security_protocol":"SASL_SSL","sasl_mechanism":"SCRAM-SHA-512","sasl_username":"retuned",'
    '"sasl_password_file":"/run/secrets/retuned/password","ssl_cafile":"/run/secrets/retuned/broker.crt",'
    '"expert_topic":"experts","start":"latest"}',
)
RELEASES = {
    "minimal": MINIMAL,
    "as_shipped": ("--values", str(VALUES)),
    "watched": WATCHED,
    "encrypted": ENCRYPTED,
    "cluster": CLUSTER,
    "protected_cluster": PROTECTED,
}
OPERATORS = ("monitoring.coreos.com/v1", "keda.sh/v1alpha1")

Object = dict[str, Any]


# That of the Python environment (`make .venv/dev`), else the one on the path.
HELM = shutil.which("helm", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
pytestmark = pytest.mark.skipif(HELM is None, reason="helm is missing: make .venv/dev installs it on x86-64")


def template(*options: str) -> str:
    """Returns what `helm template` prints for the chart.

    Raises:
        RuntimeError: Helm refuses the values; the text has the reason.
    """
    command = [str(HELM), "template", "retuned", str(CHART), "--namespace", "retuned", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


@cache
def rendered(*options: str) -> tuple[Object, ...]:
    return tuple(one for one in yaml.safe_load_all(template(*options)) if one)


def one(kind: str, name: str, *options: str) -> Object:
    (found,) = [it for it in rendered(*options) if it["kind"] == kind and it["metadata"]["name"] == name]
    return found


def pods(*options: str) -> dict[str, Object]:
    """The pod of each process."""
    objects = [it for it in rendered(*options) if it["kind"] in ("StatefulSet", "Deployment")]
    return {it["metadata"]["labels"]["app.kubernetes.io/component"]: it["spec"]["template"] for it in objects}


def environment(process: str) -> list[Object]:
    (container,) = pods(*CLUSTER)[process]["spec"]["containers"]
    found: list[Object] = container["env"]
    return found


def test_the_chart_has_the_version_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)


@pytest.mark.parametrize("kubernetes", ["1.30", "1.37"])
def test_kubernetes_takes_every_object(kubernetes: str) -> None:
    made = {json.dumps(it): it for options in RELEASES.values() for it in rendered(*options)}
    for it in made.values():
        if it["apiVersion"] not in OPERATORS:  # of which the validator has no schema
            kubernetes_validate.validate(it, kubernetes, strict=True)


def test_what_is_shipped_is_one_daemon_and_gateways_that_scale() -> None:
    kinds = sorted((it["kind"], it["metadata"]["name"]) for it in rendered("--values", str(VALUES)))
    assert kinds == [
        ("ConfigMap", "retuned"),
        ("ConfigMap", "retuned-gateway"),
        ("Deployment", "retuned-gateway"),
        ("HorizontalPodAutoscaler", "retuned-gateway"),
        ("NetworkPolicy", "retuned"),
        ("NetworkPolicy", "retuned-gateway"),
        ("PodDisruptionBudget", "retuned-gateway"),
        ("Service", "retuned"),
        ("Service", "retuned-gateway"),
        ("StatefulSet", "retuned"),
    ]
    daemon = one("StatefulSet", "retuned", *RELEASES["as_shipped"])["spec"]
    assert (daemon["replicas"], daemon["podManagementPolicy"]) == (1, "Parallel")
    assert "replicas" not in one("Deployment", "retuned-gateway", *RELEASES["as_shipped"])["spec"]
    assert {it["metadata"]["name"] for it in rendered(*MINIMAL)} == {"retuned"}


def test_a_cluster_is_ingesters_that_scale_and_a_daemon_with_a_standby() -> None:
    alone = {(it["kind"], it["metadata"]["name"]) for it in rendered(*WATCHED)}
    together = {(it["kind"], it["metadata"]["name"]) for it in rendered(*CLUSTER)}
    assert together - alone == {
        ("ConfigMap", "retuned-ingest"),
        ("Deployment", "retuned-ingest"),
        ("NetworkPolicy", "retuned-ingest"),
        ("PodDisruptionBudget", "retuned"),
        ("PodDisruptionBudget", "retuned-ingest"),
        ("ScaledObject", "retuned-ingest"),
        ("Service", "retuned-ingest"),
        ("ServiceMonitor", "retuned-ingest"),
    }
    assert alone < together
    daemon = one("StatefulSet", "retuned", *CLUSTER)["spec"]
    assert (daemon["replicas"], daemon["podManagementPolicy"]) == (2, "Parallel")
    (apart,) = daemon["template"]["spec"]["affinity"]["podAntiAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert apart["topologyKey"] == "kubernetes.io/hostname"
    assert apart["labelSelector"] == daemon["selector"]
    # The standby passes requests on to the leader.
    named = [it["valueFrom"]["fieldRef"]["fieldPath"] for it in environment("daemon") if it["name"] == "POD_IP"]
    assert named == ["status.podIP"]
    given = {it["name"]: it.get("value") for it in environment("daemon")}
    for address, host in (("10.0.0.7", "10.0.0.7"), ("fd00::7", "[fd00::7]")):
        url = given["RETUNED__STORE__ADVERTISED_URL"].replace("$(POD_IP)", address)
        assert Settings(store={"advertised_url": url}).store.advertised_url == f"http://{host}:8321"  # type: ignore[arg-type]
    policy = one("NetworkPolicy", "retuned", *CLUSTER)["spec"]
    peer = {"podSelector": daemon["selector"]}
    assert peer in policy["ingress"][0]["from"]
    assert {"to": [peer], "ports": [{"protocol": "TCP", "port": "http"}]} in policy["egress"]
    assert peer not in one("NetworkPolicy", "retuned", *WATCHED)["spec"]["ingress"][0]["from"]
    # Of two the one that is ready answers; one alone is reached while it is not.
    assert "publishNotReadyAddresses" not in one("Service", "retuned", *CLUSTER)["spec"]
    assert "replicas" not in one("Deployment", "retuned-ingest", *CLUSTER)["spec"]
    fixed = (*CLUSTER, "--set", "ingest.keda.enabled=false,ingest.replicas=5")
    assert one("Deployment", "retuned-ingest", *fixed)["spec"]["replicas"] == 5
    assert "ScaledObject" not in {it["kind"] for it in rendered(*fixed)}


def test_ingesters_scale_by_what_waits_in_their_group() -> None:
    scaled = one("ScaledObject", "retuned-ingest", *CLUSTER)["spec"]
    target = scaled["scaleTargetRef"]
    assert one(target["kind"], target["name"], *CLUSTER)["apiVersion"] == target["apiVersion"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (2, 12)
    kafka = KafkaSettings()
    for trigger, topic in zip(scaled["triggers"], kafka.topics, strict=True):
        assert trigger == {
            "type": "kafka",
            "metadata": {
                "bootstrapServers": "kafka-bootstrap.kafka:9092",
                "consumerGroup": kafka.group_id,
                "topic": topic,
                "version": "2.1.0",  # the oldest one that Kafka 4 answers
                "lagThreshold": "50000",
                "offsetResetPolicy": kafka.start,
            },
        }
        assert int(trigger["metadata"]["lagThreshold"]) > 2 * IngestSettings().batch_events


def test_the_scaler_reaches_a_protected_broker_by_the_secret_of_ingesters() -> None:
    triggers = one("ScaledObject", "retuned-ingest", *PROTECTED)["spec"]["triggers"]
    assert [trigger["metadata"]["topic"] for trigger in triggers] == ["interactions", "feedback", "experts"]
    for trigger in triggers:
        asked = trigger["metadata"]
        assert (asked["sasl"], asked["tls"], asked["offsetResetPolicy"]) == ("scram_sha512", "enable", "latest")
        assert trigger["authenticationRef"] == {"name": "retuned-ingest"}
    given = one("TriggerAuthentication", "retuned-ingest", *PROTECTED)["spec"]
    assert given["secretTargetRef"] == [
        {"parameter": "ca", "name": "retuned-ingest", "key": "broker.crt"},
        {"parameter": "password", "name": "retuned-ingest", "key": "password"},
    ]
    (username,) = given["configMapTargetRef"]
    assert one("ConfigMap", username["name"], *PROTECTED)["data"][username["key"]] == "retuned"
    assert "TriggerAuthentication" not in {it["kind"] for it in rendered(*CLUSTER)}


def test_wrong_combinations_for_a_cluster_are_refused() -> None:
    for setting, problem in {
        "config.store.kind=file": "/config/store/kind': value must be 'cluster'",  # KEDA is on
        "config.store.objects_url=file:///data": "/config/store/objects_url': 'file:///data' does not match",
        "config.store.objects_url=null": "/config/store/objects_url",
        "config.store.postgres_url_file=null": "/config/store/postgres_url_file",
        "config.privacy.user_key_file=null": "/config/privacy/user_key_file",
        "ingest.keda.minReplicas=13": r"minReplicas: expected at most ingest.keda.maxReplicas \(12\), not 13",
        "config.kafka.sasl_mechanism=OAUTHBEARER": "keda.enabled: .* no credentials for .*OAUTHBEARER",
        "config.kafka.ssl_cafile=/etc/ca.crt": "ssl_cafile: expected a key of the Secret ingest.secretName",
        "ingest.storage.size=1Gi": "/ingest.*storage",
    }.items():
        with pytest.raises(RuntimeError, match=f"(?s){problem}"):
            template(*CLUSTER, "--set", setting)


@pytest.mark.parametrize("process", ["daemon", "ingest", "gateway"])
def test_pods_have_no_rights_and_write_to_their_volumes_alone(process: str) -> None:
    pod = pods(*CLUSTER)[process]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    own = pod["securityContext"]
    assert (own["runAsNonRoot"], own["runAsUser"], own["fsGroup"]) == (True, 10001, 10001)
    assert own["fsGroupChangePolicy"] == "OnRootMismatch"  # else the kubelet opens files of 0600 to the group
    assert own["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
    assert "memory" in container["resources"]["limits"]
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()
    claimed = one("StatefulSet", "retuned", *CLUSTER)["spec"]["volumeClaimTemplates"]
    volumes = {it["name"] for it in pod["volumes"]}
    volumes |= {it["metadata"]["name"] for it in claimed} if process == "daemon" else set()
    assert {it["name"] for it in container["volumeMounts"]} == volumes
    writable = {it["mountPath"] for it in container["volumeMounts"] if not it.get("readOnly")}
    assert writable == ({"/tmp"} if process == "ingest" else {"/data", "/tmp"})


def test_the_image_runs_as_the_user_of_the_pods() -> None:
    assert set(re.findall(r"^USER (.+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)) == {"10001:10001"}


@pytest.mark.parametrize("release", RELEASES)
def test_services_policies_and_the_autoscaler_find_their_pods(release: str) -> None:
    options = RELEASES[release]
    made = {process: pod["metadata"]["labels"] for process, pod in pods(*options).items()}
    ports = {process: pod["spec"]["containers"][0]["ports"] for process, pod in pods(*options).items()}
    chosen = {"Service": "selector", "PodDisruptionBudget": "selector", "NetworkPolicy": "podSelector"}
    for it in rendered(*options):
        process = it["metadata"]["labels"]["app.kubernetes.io/component"]
        if it["kind"] in chosen:
            selector = it["spec"][chosen[it["kind"]]]
            wanted = selector.get("matchLabels", selector).items()
            assert [name for name, labels in made.items() if wanted <= labels.items()] == [process], it
        if it["kind"] == "Service":
            (port,) = it["spec"]["ports"]
            assert ports[process] == [{"name": port["targetPort"], "containerPort": port["port"]}]
        if it["kind"] == "ServiceMonitor":
            (service,) = [
                own
                for own in rendered(*options)
                if own["kind"] == "Service"
                and own["metadata"]["labels"].items() >= it["spec"]["selector"]["matchLabels"].items()
            ]
            assert it["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
        if it["kind"] == "HorizontalPodAutoscaler":
            target = it["spec"]["scaleTargetRef"]
            assert one(target["kind"], target["name"], *options)["apiVersion"] == target["apiVersion"]


def test_a_policy_without_peers_lets_nobody_in() -> None:
    closed = (*RELEASES["as_shipped"], "--set-json", 'networkPolicy={"scrapers":[],"gateway":{"clients":[]}}')
    assert one("NetworkPolicy", "retuned-gateway", *closed)["spec"]["ingress"] == []
    (daemon,) = one("NetworkPolicy", "retuned", *closed)["spec"]["ingress"]
    (peer,) = daemon["from"]
    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "gateway"
    assert one("NetworkPolicy", "retuned-ingest", *CLUSTER, *closed[-2:])["spec"]["ingress"] == []
    for release in (MINIMAL, CLUSTER):
        opened = rendered(*release, "--set", "networkPolicy.enabled=false")
        assert not [it for it in opened if it["kind"] == "NetworkPolicy"]


def stage(name: str) -> str:
    """What stands in the Dockerfile below the line of a stage."""
    found = re.search(rf"^FROM \S+ AS {name}$(.*?)(?=^FROM|\Z)", (DEPLOY / "Dockerfile").read_text(), re.M | re.S)
    assert found is not None
    return found[1]


def configured(process: str, monkeypatch: pytest.MonkeyPatch, folder: Path, *options: str) -> Settings:
    """What the process makes of its ConfigMap and its environment, the image's and the pod's."""
    own, served = (stage(name) for name in (process, "process" if process == "gateway" else "served"))
    pod = pods(*options)[process]["spec"]
    given = {it["name"]: it["value"] for it in pod["containers"][0].get("env", ()) if it["name"].startswith("RETUNED_")}
    for name, value in (dict(re.findall(r"(RETUNED__\w+)=(\S+)", served + own)) | given).items():
        monkeypatch.setenv(name, value)
    (name,) = [it["configMap"]["name"] for it in pod["volumes"] if "configMap" in it]
    file = folder / "retuned.yaml"
    file.write_text(one("ConfigMap", name, *options)["data"]["retuned.yaml"])
    return load(file)


def test_the_daemon_takes_its_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    more = (*RELEASES["as_shipped"], "--set-json", 'config.retention={"keep_bytes":1000000000000}')
    settings = configured("daemon", monkeypatch, tmp_path, *more)
    pod = pods(*more)["daemon"]["spec"]
    (container,) = pod["containers"]
    assert settings.http.host == "::"
    assert settings.http.port == container["ports"][0]["containerPort"]
    assert settings.kafka.bootstrap_servers == "kafka-bootstrap.kafka:9092"
    assert settings.retention.keep_bytes == 1_000_000_000_000
    assert settings.gateway.upstreams == ()  # is for gateways
    for path in (settings.warehouse.path, settings.models.directory):
        assert path.is_relative_to("/data")
    assert settings.warehouse.path.parent != Path("/data")  # whose mode is the kubelet's
    assert pod["terminationGracePeriodSeconds"] > STOP_SECONDS


def test_gateways_take_theirs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    more = (
        *(
            *RELEASES["encrypted"],
            "--set-json",
            "config.gateway.drain_seconds=90.5",
            "--set",
            "config.privacy.names=true",
        ),
        *("--set-json", 'config.workloads={"support":{"incumbent":{"url":"https://api.example/v1","model":"mini"}}}'),
    )
    settings = configured("gateway", monkeypatch, tmp_path, *more)
    pod = pods(*more)["gateway"]["spec"]
    (container,) = pod["containers"]
    assert settings.gateway.host == "::"
    assert settings.gateway.port == container["ports"][0]["containerPort"]
    assert settings.gateway.buffer.is_relative_to("/data")
    assert settings.gateway.daemon_url == "https://retuned.retuned.svc:8321"
    assert settings.http.tls_certificate_file is None  # is the daemon's
    assert settings.privacy.names, "a question of the memory is found by its redacted text"
    assert settings.workloads["support"]["incumbent"]["model"] == "mini"
    held = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= held + settings.gateway.drain_seconds + FLUSH_SECONDS


def test_gateways_get_all_that_an_entry_of_workloads_may_override() -> None:
    own = {name: {"of": name} for name in (*SECTIONS, "models")} | {"objective": "shorter calls"}
    more = (*RELEASES["as_shipped"], *(f"--set-json=config.{name}={json.dumps(given)}" for name, given in own.items()))
    given = yaml.safe_load(one("ConfigMap", "retuned-gateway", *more)["data"]["retuned.yaml"])
    assert {name: given.get(name) for name in own} == own


@pytest.mark.parametrize(
    "sections",
    [
        {"retention": {"keep_days": 30}, "workloads": {"support": {"retention": {"delete_days": 60}}}},
        {
            "evaluate": {"judge_url": "http://judge/v1", "judge_model": "mine"},
            "workloads": {"support": {"evaluate": {"judge_url": "http://other/v1"}}},
        },
        {
            "rollout": {"maximum_seconds": 2_592_000},
            "workloads": {"support": {"rollout": {"minimum_seconds": 864_000}}},
        },
        {
            "incumbent": {"url": "https://api.example/v1", "model": "large"},
            "cascade": {"longer_than": 1000},
            "workloads": {"support": {"incumbent": {"model": "mini"}}},
        },
    ],
)
def test_gateways_take_every_entry_that_the_daemon_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sections: dict[str, Object]
) -> None:
    given = tuple(f"--set-json=config.{name}={json.dumps(section)}" for name, section in sections.items())
    gateway, daemon = (
        configured(process, monkeypatch, tmp_path, *RELEASES["as_shipped"], *given) for process in ("gateway", "daemon")
    )
    for workload in ("support", "sales"):
        own, routed = daemon.for_workload(workload), gateway.for_workload(workload)
        assert {name: getattr(own, name) for name in SECTIONS} == {name: getattr(routed, name) for name in SECTIONS}


def test_the_daemon_is_asked_by_its_own_names_where_names_are_restricted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    more = (*CLUSTER, "--set-json", 'config.http.hosts=["retuned.example.com"]')
    gateway, daemon = (configured(process, monkeypatch, tmp_path, *more) for process in ("gateway", "daemon"))
    assert daemon.http.hosts[0] == "retuned.example.com"
    assert urlsplit(str(gateway.gateway.daemon_url)).hostname in daemon.http.hosts
    assert {"retuned", "retuned.retuned"} <= set(daemon.http.hosts)
    assert daemon.http.metrics_token_file == Path("/run/secrets/retuned/metrics-token")
    assert not configured("ingest", monkeypatch, tmp_path, *more).http.hosts  # only addresses of pods are asked
    assert not configured("daemon", monkeypatch, tmp_path, *CLUSTER).http.hosts


def test_ingesters_get_of_the_http_server_what_they_have() -> None:
    def given(*options: str) -> Object:
        text = one("ConfigMap", "retuned-ingest", *CLUSTER, *options)["data"]["retuned.yaml"]
        found: Object = yaml.safe_load(text)["http"]
        return found

    shipped = {f"{role}_token_file" for role in ("metrics", "viewer", "operator")}
    (container,) = pods(*CLUSTER)["ingest"]["spec"]["containers"]
    assert "/data" not in {it["mountPath"] for it in container["volumeMounts"]}
    assert given().keys() == shipped
    in_volume = "config.http.principals_file=/data/principals.yaml"
    assert given("--set", in_volume).keys() == shipped
    assert given("--set", "config.http.principals_file=/run/secrets/retuned/people").keys() == shipped | {
        "principals_file"
    }
    with pytest.raises(RuntimeError, match="operator_token_file: expected a file in a cluster"):
        template(*CLUSTER, "--set", f"{in_volume},config.http.operator_token_file=null")


def test_ingesters_and_the_daemons_that_follow_them_take_theirs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ingest = configured("ingest", monkeypatch, tmp_path, *PROTECTED)
    pod = pods(*PROTECTED)["ingest"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "registry.example.com/retuned:1.0.0-ingest"
    assert 'CMD ["ingest"]' in stage("ingest")
    assert (ingest.http.host, ingest.http.port) == ("::", container["ports"][0]["containerPort"])
    assert ingest.kafka.sasl_username == "retuned"
    assert pod["terminationGracePeriodSeconds"] > STOP_SECONDS
    daemon = configured("daemon", monkeypatch, tmp_path, *PROTECTED)
    assert ingest.store == daemon.store.model_copy(update={"advertised_url": None})
    assert ingest.privacy == daemon.privacy
    assert (ingest.store.kind, ingest.store.objects_url) == ("cluster", "s3://my-bucket/retuned")
    secret = Path("/run/secrets/retuned")
    assert (ingest.store.postgres_url_file, ingest.privacy.user_key_file) == (
        secret / "postgres-url",
        secret / "user-key",
    )
    assert daemon.http.session_key_file == secret / "session-key", "a browser is signed in at both daemons"
    for process in ("daemon", "ingest"):
        (container,) = pods(*PROTECTED)[process]["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "retuned-objects"}}]
        assert {"name": "AWS_REGION", "value": "eu-central-1"} in container["env"]
    assert "envFrom" not in pods(*RELEASES["as_shipped"])["daemon"]["spec"]["containers"][0]


def test_the_cloud_can_give_daemons_and_ingesters_their_rights_on_the_bucket() -> None:
    made = pods(*CLUSTER, "--set", "objects.serviceAccountName=bucket,objects.secretName=")
    assert {process: pod["spec"].get("serviceAccountName") for process, pod in made.items()} == {
        "daemon": "bucket",
        "ingest": "bucket",
        "gateway": None,
    }
    assert not [pod for pod in made.values() if "envFrom" in pod["spec"]["containers"][0]]


def test_a_change_of_configuration_restarts_whom_it_concerns_alone() -> None:
    def sums(*options: str) -> dict[str, str]:
        made = pods(*CLUSTER, *options)
        return {process: pod["metadata"]["annotations"]["checksum/config"] for process, pod in made.items()}

    before = sums()

    def restarts(setting: str) -> set[str]:
        return {name for name, found in sums("--set", setting).items() if found != before[name]}

    assert {
        name for name, found in sums("--set", "config.gateway.poll_seconds=3").items() if found != before[name]
    } == {"gateway"}
    assert restarts("config.gateway.poll_seconds=3") == {"gateway"}
    assert restarts("config.policy.enabled=false") == {"daemon"}
    for shared in ("kafka.group_id=other", "ingest.max_event_bytes=1000", "privacy.names=true", "logging.level=debug"):
        assert restarts(f"config.{shared}") == {"daemon", "gateway", "ingest"}
    for of_a_cluster in ("store.segment_seconds=9", "http.viewer_token_file=/run/other"):
        assert restarts(f"config.{of_a_cluster}") == {"daemon", "ingest"}
    assert restarts("config.workloads.support.memory.mode=context") == {"daemon", "gateway"}
    assert restarts("config.incumbent.model=mini") == {"daemon", "gateway"}
    assert restarts("config.retention.keep_days=30") == {"daemon"}  # gateways only check entries of workloads by it
    assert restarts("config.http.gateway_token_file=/run/other") == {"daemon"}


def test_probes_ask_as_daemons_and_ingesters_serve() -> None:
    encrypted = (*CLUSTER, *ENCRYPTED[-2:])
    for process, monitor, release, scheme in (
        ("daemon", "retuned", WATCHED, "HTTP"),
        ("daemon", "retuned", ENCRYPTED, "HTTPS"),
        ("ingest", "retuned-ingest", CLUSTER, "HTTP"),
        ("ingest", "retuned-ingest", encrypted, "HTTPS"),
    ):
        (container,) = pods(*release)[process]["spec"]["containers"]
        probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
        assert {it["scheme"] for it in probes.values()} == {scheme}
        assert {name: it["path"] for name, it in probes.items()} == {
            "startup": "/healthz",
            "liveness": "/healthz",
            "readiness": "/readyz",
        }
        (endpoint,) = one("ServiceMonitor", monitor, *release)["spec"]["endpoints"]
        assert endpoint["scheme"].upper() == scheme
        assert ("tlsConfig" in endpoint) == (scheme == "HTTPS")
    # The page and a rollback are served while the broker is away and the pod is not ready.
    assert one("Service", "retuned", *MINIMAL)["spec"]["publishNotReadyAddresses"] is True


def test_secrets_are_named_and_never_rendered() -> None:
    made = rendered(*PROTECTED)
    assert "Secret" not in {it["kind"] for it in made}
    for process, pod in pods(*PROTECTED).items():
        mounted = [it["secret"]["secretName"] for it in pod["spec"]["volumes"] if "secret" in it]
        assert mounted == [f"retuned-{process}"]
    for monitor, (name, key) in {
        "retuned": ("retuned-daemon", "metrics-token"),
        "retuned-ingest": ("retuned-ingest", "metrics-token"),
        "retuned-gateway": ("retuned-gateway", "metrics-key"),
    }.items():
        (endpoint,) = one("ServiceMonitor", monitor, *CLUSTER)["spec"]["endpoints"]
        assert endpoint["authorization"] == {"credentials": {"name": name, "key": key}}


def test_gateways_send_a_token_that_reads_the_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sent = configured("gateway", monkeypatch, tmp_path, *RELEASES["as_shipped"]).gateway.daemon_token_file
    daemon = configured("daemon", monkeypatch, tmp_path, *RELEASES["as_shipped"])
    assert sent
    assert daemon.http.gateway_token_file
    commands = (ROOT / "docs" / "kubernetes.md").read_text()
    (of_daemon,) = re.findall(rf"--from-literal={daemon.http.gateway_token_file.name}=(\$\w+)", commands)
    (of_gateways,) = re.findall(rf"--from-literal={sent.name}=(\$\w+)", commands)
    assert of_daemon == of_gateways


def secrets(model: type[BaseModel]) -> list[str]:
    """Keys of a section whose value is a secret."""
    return [name for name, field in model.model_fields.items() if "SecretStr" in str(field.annotation)]


def test_values_hold_no_secret_and_nothing_unknown() -> None:
    sections = {name: field.annotation for name, field in Settings.model_fields.items()}
    kept = {
        f"config.{name}.{key}"
        for name, section in sections.items()
        if isinstance(section, type) and issubclass(section, BaseModel)
        for key in secrets(section)
    }
    assert {"config.kafka.sasl_password", "config.http.operator_token"} <= kept
    for key in {*kept, "config.warehouse.path", "config.http.host", "daemon.replicas", "image.registry"}:
        with pytest.raises(
            RuntimeError, match=f"(?s)at '/{key.rsplit('.', 1)[0].replace('.', '/')}.*{key.split('.')[-1]}"
        ):
            template(*MINIMAL, "--set", f"{key}=something-of-that-length")
    with pytest.raises(RuntimeError, match="/config/kafka/bootstrap_servers"):
        template()
    with pytest.raises(RuntimeError, match="/config/gateway/upstreams"):
        template(*MINIMAL, "--set", "gateway.enabled=true")


def test_the_values_of_the_documentation_render(tmp_path: Path) -> None:
    blocks = re.findall(
        r"^    (?:# values|config:)[^`]*?\n\n", (ROOT / "docs" / "kubernetes.md").read_text(), re.MULTILINE
    )
    assert len(blocks) == 3
    files = [tmp_path / f"{number}.yaml" for number in range(len(blocks))]
    for file, block in zip(files, blocks, strict=True):
        file.write_text(block)
    options = [option for file in files for option in ("--values", str(file))]
    assert pods(*options).keys() == {"daemon", "ingest", "gateway"}
    assert one("ScaledObject", "retuned-ingest", *options)["spec"]["maxReplicaCount"] == 12
    (container,) = pods(*options)["gateway"]["spec"]["containers"]
    assert container["env"] == [{"name": "SSL_CERT_FILE", "value": "/run/secrets/retuned/ca.crt"}]


def test_alerts_and_dashboards_are_those_of_deploy() -> None:
    rules = one("PrometheusRule", "retuned", *WATCHED)
    assert rules["spec"] == yaml.safe_load((DEPLOY / "retuned.rules.yml").read_text())
    assert rules["metadata"]["labels"]["release"] == "prometheus"
    boards = one("ConfigMap", "retuned-dashboards", *WATCHED)
    assert boards["metadata"]["labels"]["grafana_dashboard"] == "1"
    shipped = {path.name: json.loads(path.read_text()) for path in (DEPLOY / "grafana" / "dashboards").glob("*.json")}
    assert {name: json.loads(text) for name, text in boards["data"].items()} == shipped


def test_series_come_under_the_names_that_the_alerts_expect() -> None:
    expected = set(re.findall(r'job="([^"]+)"', (DEPLOY / "retuned.rules.yml").read_text()))
    monitors = [it for it in rendered(*CLUSTER) if it["kind"] == "ServiceMonitor"]
    assert len(monitors) == 3
    steps = [it["spec"]["endpoints"][0]["relabelings"] for it in monitors]
    assert {job["targetLabel"] for job, _ in steps} == {"job"}
    assert {job["replacement"] for job, _ in steps} == {"retuned", "retuned-gateway"} == expected


def test_series_of_a_pod_go_on_when_it_gets_another_address() -> None:
    for monitor in [it for it in rendered(*CLUSTER) if it["kind"] == "ServiceMonitor"]:
        (instance,) = [
            step for step in monitor["spec"]["endpoints"][0]["relabelings"] if step["targetLabel"] == "instance"
        ]
        assert instance == {
            "sourceLabels": ["__meta_kubernetes_namespace", "__meta_kubernetes_pod_name"],
            "separator": "/",
            "targetLabel": "instance",
        }
