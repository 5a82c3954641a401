"""Yardsticks trained on the same split as the released models: boosted trees and the network of the paper."""
