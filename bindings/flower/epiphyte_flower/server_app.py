"""The server: rounds of a strategy, as `[tool.flwr.app.config]` says."""

from flwr.serverapp import ServerApp

from .strategy import EpiphyteStrategy

app = ServerApp()


@app.main()
def main(grid, context):
    config = context.run_config
    nodes = config["min-nodes"]
    strategy = EpiphyteStrategy(
        config["folder"], config["first-version"], config["server-key"],
        config["aggregate"].split(), config["epiphyte"],
        min_train_nodes=nodes, min_evaluate_nodes=nodes, min_available_nodes=nodes)
    strategy.start(grid=grid, initial_arrays=strategy.initial_arrays(),
                   num_rounds=config["num-server-rounds"])
