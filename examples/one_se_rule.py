"""Cross-validation's best model, or the simplest that is as good: the rule of one standard error.

The diabetes data with all squares and products of its ten features: 65 columns for 342 rows. The
strength with the least mean held-out loss keeps many; the strongest one whose loss is within one
standard error of the least (Breiman et al., 1984) keeps few, and predicts new rows about as well.
"""

import torch
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import PolynomialFeatures

from torchreg import L1
from torchreg.linear import fit_cv


def main() -> tuple[int, int]:
    features, target = load_diabetes(return_X_y=True, scaled=False)
    train, test, y, held_out = train_test_split(features, target, test_size=100, random_state=0)
    train, centre, spread = (train - train.mean(0)) / train.std(0), train.mean(0), train.std(0)
    products = PolynomialFeatures(degree=2, include_bias=False)
    X, new = products.fit_transform(train), products.transform((test - centre) / spread)

    cv = fit_cv(X, y, L1(1.0), cv=10, random_state=0, standardize=True, eps=0.01)
    print(f"{'rule':>4}  {'alpha':>7}  {'cv loss':>7}  {'se':>5}  {'features':>8}  {'test loss':>9}")
    kept = []
    for rule, index in (("min", cv.index_min), ("1se", cv.index_1se)):
        fit = cv.path.at(float(cv.alphas[index]))
        loss = (fit.predict(new) - torch.as_tensor(held_out)).square().mean()
        kept.append(int((fit.coef != 0).sum()))
        print(f"{rule:>4}  {fit.alpha:7.3f}  {cv.mean[index]:7.0f}  {cv.se[index]:5.0f}  {kept[-1]:8d}  {loss:9.0f}")
    names = products.get_feature_names_out(load_diabetes().feature_names)
    chosen = cv.path.at(cv.alpha_1se).coef.nonzero().flatten()
    print("kept by 1se:", ", ".join(names[k] for k in chosen))
    print(f"largest duality gap / null loss: {float((cv.path.dual_gaps / cv.path.null_objective).max()):.0e}")
    return kept[0], kept[1]


if __name__ == "__main__":
    main()
