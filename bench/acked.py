"""What an acknowledged event costs the gateway alone: `python -m bench.acked`.

A gateway, the publisher `acks`, and a sink that acknowledges at once (`bench/ready_sink.py`), each a process; the
gateway's CPU time is counted, so what the others use, or who else is on the machine, does not matter much.
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from bench.processes import BIN, BenchError, Process, free_ports
from bench.programs import program

SINK = Path(__file__).with_name("ready_sink.py")
SUBJECT = "orders.created"


def configuration(client: int, sink: int) -> str:
    return (
        f'[mesh]\nname = "bench"\n[zones.z.gateways.gw]\nclient = "127.0.0.1:{client}"\n'
        f'[zones.z.sinks.s1]\nlink = "127.0.0.1:{sink}"\nraft = "127.0.0.1:1"\ndata = "nowhere"\n'
        '[streams.orders]\nsubjects = ["orders.>"]\nack = "quorum"\n'
    )


def measure(payload_bytes: int, window: int, seconds: float) -> tuple[float, float, float]:
    """Acknowledged events for each second of the gateway's CPU; for each second; and the part of a CPU that it used."""
    client, sink = free_ports(2)
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "mesh.toml").write_text(configuration(client, sink))
        processes = [Process([sys.executable, str(SINK), "mesh.toml", "s1"], folder)]
        try:
            processes[0].wait_until_it_listens(sink)
            command = [str(BIN / "gateway"), "--config", "mesh.toml", "--node", "gw", "--log-level", "warning"]
            processes.append(gateway := Process(command, folder))
            gateway.wait_until_it_listens(client)
            publish(client, payload_bytes, window, 0.2)
            before_s = gateway.cpu_s()
            said = publish(client, payload_bytes, window, seconds)
            cpu_s = gateway.cpu_s() - before_s
        finally:
            for process in processes:
                process.kill()
    return said["acked"] / cpu_s, said["acked"] / said["seconds"], cpu_s / said["seconds"]


def publish(port: int, payload_bytes: int, window: int, seconds: float) -> dict[str, float]:
    words = [str(program("acks")), *map(str, (port, SUBJECT, payload_bytes, window, seconds, 0, 0, 1_000))]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise BenchError(f"acks: {ended.stderr.strip()}")
    said: dict[str, float] = json.loads(ended.stdout)
    if said["refused"] or said["given_up"]:
        raise BenchError(f"not everything was acknowledged: {ended.stdout.strip()}")
    return said


@click.command()
@click.option("--bytes", "sizes", default="128,1024", help="Sizes of payloads.")
@click.option("--window", default=4096, help="Events unanswered at a time.")
@click.option("--seconds", default=2.0, help="Length of one turn.")
@click.option("--rounds", default=3, help="Turns of each size.")
def main(sizes: str, window: int, seconds: float, rounds: int) -> None:
    for size in map(int, sizes.split(",")):
        for _ in range(rounds):
            per_cpu_s, per_s, part = measure(size, window, seconds)
            print(f"{size} B: {per_cpu_s:,.0f} for a second of CPU; {per_s:,.0f} in a second, with {part:.0%} of a CPU")


if __name__ == "__main__":
    main()
