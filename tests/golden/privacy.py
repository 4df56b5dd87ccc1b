"""Prints the figures of tests/federated/privacy.rs: `pip install dp-accounting==0.6.0`."""

import dp_accounting
import numpy as np
from dp_accounting import rdp
from scipy.integrate import quad

ANCHORS = [
    (0.01, 0.6, 100, 1e-6),
    (0.01, 1.0, 100, 1e-6),
    (0.01, 1.0, 1000, 1e-6),
    (0.001, 0.6, 1000, 1e-7),
    (0.1, 1.0, 50, 1e-5),
    (0.1, 2.0, 50, 1e-5),
    (1.0, 5.0, 20, 1e-5),
]

for q, sigma, rounds, delta in ANCHORS:
    accountant = rdp.RdpAccountant()
    event = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma))
    accountant.compose(event, rounds)
    print(q, sigma, rounds, delta, accountant.get_epsilon(delta))


def by_quadrature(q, s, order):
    """The divergence itself; dp-accounting bounds it from above at orders that are not whole."""

    def integrand(z):
        ratio = 1 - q + q * np.exp((2 * z - 1) / 2 / s / s)
        return np.exp(-z * z / 2 / s / s) / np.sqrt(2 * np.pi) / s * ratio**order

    value, _ = quad(integrand, -12 * s, order + 12 * s, epsabs=0, epsrel=1e-13, limit=2000)
    return np.log(value) / (order - 1)


for q, sigma in [(0.01, 0.6), (0.1, 1.0), (0.001, 2.0)]:
    for order in (1.5, 2.0, 3.7, 16.0, 64.0):
        if order % 1:
            print(q, sigma, order, by_quadrature(q, sigma, order))
            continue
        accountant = rdp.RdpAccountant(orders=[order])
        event = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma))
        accountant.compose(event)
        print(q, sigma, order, repr(float(accountant._rdp[0])))
