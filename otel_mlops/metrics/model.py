"""The rows of a model's work: latency, phases, classes, drift, late truth and what it says, comparisons, tokens."""

from otel_mlops.metrics.row import Metric

# fmt: off

TRUTH_RESULTS = ("matched", "unmatched", "duplicate", "expired", "forged", "invalid", "busy")
"""What became of a truth that was told."""

FEATURE_REASONS = ("below_range", "above_range", "infinite", "type", "unseen")
"""Why a feature's value is not as in training."""

CACHE_RESULTS = ("hit", "miss")

_OF = ("model_name", "model_version")
_ON = (*_OF, "dataset")
_PAIR = ("baseline", "candidate")
_BOUNDS = {"bound": ("lower", "upper")}
_TOLD = {"result": TRUTH_RESULTS}

_PHASE_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)
_CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_DELAY_S = (
    1.0, 10.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0, 28800.0, 86400.0, 259200.0, 604800.0, 2592000.0,
)
# The bounds that the semantic conventions for generative AI advise.
_REQUEST_S = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
)
_FIRST_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)
_EACH_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS = tuple(float(4**power) for power in range(14))

# --- Latency and what happens in a prediction -----------------------------------------------------------------

PREDICTION_LATENCY_P50 = Metric(
    "prediction.latency.p50", "gauge", "s", "Median of the duration of the prediction calls in the latency window.",
    _OF, "once", note="OTEL_MLOPS_LATENCY_WINDOW is the window; within 1.1 percent from a microsecond to 1,024 "
    "seconds, over all workers. A longer call counts as 1,024 seconds.",
)
PREDICTION_LATENCY_P999 = Metric(
    "prediction.latency.p999", "gauge", "s",
    "Duration that one in a thousand prediction calls in the latency window exceeds.", _OF, "once",
)
PREDICTION_LATENCY_SAMPLES = Metric(
    "prediction.latency.samples", "gauge", "{prediction}", "Prediction calls in the latency window.", _OF, "once",
    note="A p99 of fewer than some hundred says little.",
)
PREDICTION_PHASE_DURATION = Metric(
    "prediction.phase.duration", "histogram", "s", "Time of one phase of a prediction call.",
    (*_OF, "phase"), buckets=_PHASE_S,
    note="The service names the phases, `queue`, `preprocess`, `inference` and `postprocess` by custom.",
)
PREDICTION_CLASS = Metric(
    "prediction.class", "counter", "{row}", "Rows for which the model answered with this class.",
    (*_OF, "predicted_class"), note="Classes past the first 100 of a model count as `other`.",
)
PREDICTION_CONFIDENCE = Metric(
    "prediction.confidence", "histogram", "", "The probability that the model gave its own answer.",
    _OF, buckets=_CONFIDENCE,
)
PREDICTION_CACHE = Metric(
    "prediction.cache", "counter", "{prediction}", "Prediction calls that asked a cache.",
    (*_OF, "result"), values={"result": CACHE_RESULTS},
)

# --- Features and drift -------------------------------------------------------------------------------------

MODEL_DRIFT_THRESHOLD = Metric(
    "model.drift.threshold", "gauge", "", "The drift score above which a feature has drifted.",
    (*_OF, "feature"), "once",
    note="The largest of an effect that matters, of what training's own days differ by, and of chance at this many "
    "samples.",
)
MODEL_DRIFT_DETECTED = Metric(
    "model.drift.detected", "gauge", "",
    "Whether a feature has drifted: 1 where its score is above its threshold and the samples suffice, else 0.",
    (*_OF, "feature"), "once",
)
MODEL_DRIFT_WINDOW_SAMPLES = Metric(
    "model.drift.window.samples", "gauge", "{row}", "Rows in the drift window, by feature.",
    (*_OF, "feature"), "once",
)
MODEL_DRIFT_FEATURES = Metric(
    "model.drift.features", "gauge", "{feature}",
    "Features that have drifted, where in the mean a hundredth at most of those counted is chance.", _OF, "once",
    note="By Benjamini and Hochberg, and only of those whose change is large enough to matter.",
)
MODEL_DRIFT_DISTANCE = Metric(
    "model.drift.distance", "gauge", "", "How far a feature is from its reference by another measure, 0 to 1.",
    (*_OF, "feature", "measure"), "once", values={"measure": ("jensen_shannon", "kolmogorov_smirnov")},
)
MODEL_FEATURE_MISSING = Metric(
    "model.feature.missing", "counter", "{value}", "Rows in which a feature has no value: None, NaN, or no number.",
    (*_OF, "feature"), "once",
)
MODEL_FEATURE_INVALID = Metric(
    "model.feature.invalid", "counter", "{value}", "Values of a feature that are not as in training, by the reason.",
    (*_OF, "feature", "reason"), "once", values={"reason": FEATURE_REASONS},
    note="`infinite` and `type` values count as missing as well; the others are in a bin all the same. Where "
    "training's rare values share the bin `other`, none counts as `unseen`.",
)
MODEL_FEATURE_BIN = Metric(
    "model.feature.bin", "counter", "{row}", "Rows by feature and bin.", (*_OF, "feature", "bin"), "once",
    note="Only with OTEL_MLOPS_MODEL_COUNTS: from it and the next one PromQL computes the score of a whole fleet.",
)
MODEL_REFERENCE_BIN_RATIO = Metric(
    "model.reference.bin.ratio", "gauge", "1", "Share of training's rows by feature and bin.",
    (*_OF, "feature", "bin"), "once", note="Only with OTEL_MLOPS_MODEL_COUNTS.",
)
MODEL_REFERENCE_SAMPLES = Metric(
    "model.reference.samples", "gauge", "{row}", "Training's rows by feature.",
    (*_OF, "feature"), "once", note="Only with OTEL_MLOPS_MODEL_COUNTS.",
)

# --- Quality, where the truth is known -----------------------------------------------------------------------

MODEL_PRECISION = Metric(
    "model.precision.score", "gauge", "",
    "Share of the answers for a class that are right: the positive class, or the mean of all classes.", _ON, "once",
)
MODEL_RECALL = Metric(
    "model.recall.score", "gauge", "",
    "Share of a class that was found: of the positive class, or the mean of all classes.", _ON, "once",
)
MODEL_F1 = Metric(
    "model.f1.score", "gauge", "", "Harmonic mean of precision and recall, likewise.", _ON, "once"
)
MODEL_MATTHEWS = Metric(
    "model.matthews.score", "gauge", "",
    "Matthews' correlation of answers and truth: 1 all right, 0 no better than chance.", _ON, "once",
)
MODEL_AUC = Metric(
    "model.auc.score", "gauge", "", "How often a positive case scores above a negative one, 0 to 1.", _ON, "once",
    note="With several classes this and the next three are of the probability of the answer, and of whether it is "
    "right.",
)
MODEL_BRIER = Metric(
    "model.brier.score", "gauge", "", "Mean squared error of the probabilities; 0 is perfect.", _ON, "once"
)
MODEL_LOG_LOSS = Metric(
    "model.log.loss.score", "gauge", "", "Mean logarithmic loss of the probabilities, in nats; 0 is perfect.",
    _ON, "once",
)
MODEL_CALIBRATION_ERROR = Metric(
    "model.calibration.error.score", "gauge", "",
    "By how much probabilities differ from how often they come true, in the mean, 0 to 1.", _ON, "once",
)
MODEL_BIAS = Metric(
    "model.bias.score", "gauge", "", "Mean error, in the target's unit: above 0 where the model says too much.",
    _ON, "once",
)
MODEL_SCORE_BOUND = Metric(
    "model.score.bound", "gauge", "", "Bounds of the interval in which a score lies with 95 percent.",
    (*_ON, "score", "bound"), "once", values={"score": ("accuracy", "bias", "mae"), **_BOUNDS},
)
MODEL_PERFORMANCE_SAMPLES = Metric(
    "model.performance.samples", "gauge", "{truth}", "Truths in the quality window.", _ON, "once",
    note="Alert on a score only where these suffice.",
)
MODEL_ESTIMATED_ACCURACY = Metric(
    "model.estimated.accuracy.score", "gauge", "",
    "The accuracy that the model's probabilities let expect, without any truth.", _OF, "once",
    note="An estimate from the calibration in training: it sees a change of the inputs, and is blind to a change of "
    "what the inputs mean (concept drift).",
)
MODEL_TRUTHS = Metric(
    "model.truths", "counter", "{truth}", "Truths of a regression.", _OF, "once",
    note="This and the next three only with OTEL_MLOPS_MODEL_COUNTS: the scores of a whole fleet in PromQL.",
)
MODEL_ERROR_ABSOLUTE = Metric(
    "model.error.absolute", "counter", "", "Sum of the absolute errors of a regression.", _OF, "once"
)
MODEL_ERROR_SQUARED = Metric(
    "model.error.squared", "counter", "", "Sum of the squared errors of a regression.", _OF, "once"
)
MODEL_CONFUSION = Metric(
    "model.confusion", "counter", "{truth}", "Truths of a classification by class and answer.",
    (*_OF, "actual", "predicted"), "once",
)
GROUND_TRUTH = Metric(
    "ground.truth", "counter", "{truth}", "Truths that were told, by what became of them.",
    (*_OF, "result"), values=_TOLD,
    note="`unmatched` has no prediction; `duplicate` was told before; `forged` has no valid signature; `busy` could "
    "not be looked up in time.",
)
GROUND_TRUTH_DELAY = Metric(
    "ground.truth.delay", "histogram", "s", "Time from a prediction to its truth.", _OF, buckets=_DELAY_S
)
GROUND_TRUTH_COVERAGE = Metric(
    "ground.truth.coverage.ratio", "gauge", "1",
    "Share of the predictions that wait for a truth which got one, 0 to 1.", _OF, "once",
    note="Of the predictions made so long ago as truths take in the mean; absent until those of a whole quality window "
    "are known.",
)

# --- Comparisons --------------------------------------------------------------------------------------------

MODEL_AGREEMENT = Metric(
    "model.agreement.ratio", "gauge", "1", "Share of the inputs for which two models give the same answer.",
    _PAIR, "once", note="The two as `name:version`.",
)
MODEL_PREDICTION_DIFFERENCE = Metric(
    "model.prediction.difference", "gauge", "", "Mean absolute difference of two models' answers to the same inputs.",
    _PAIR, "once",
)
MODEL_PAIRED_DIFFERENCE = Metric(
    "model.paired.difference", "gauge", "",
    "By how much the candidate is better than the baseline on the same truths: 95 percent interval and mean.",
    (*_PAIR, "difference", "estimate"), "once",
    values={"difference": ("accuracy", "absolute_error"), "estimate": ("mean", "lower", "upper")},
    note="Above 0 the candidate is better: its accuracy is higher, or its absolute error lower.",
)
MODEL_COMPARED = Metric(
    "model.compared", "gauge", "{row}", "Inputs in the comparison's window: all, and those whose truth is known.",
    (*_PAIR, "known"), "once", values={"known": ("answers", "truths")},
)

# --- Generating models ---------------------------------------------------------------------------------------

_ASKED = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "gen_ai.response.model")
GEN_AI_SERVER_REQUEST_DURATION = Metric(
    "gen_ai.server.request.duration", "histogram", "s", "Time of one request to a generating model.",
    _ASKED, buckets=_REQUEST_S, optional_attributes=("error.type",),
    note="With `error.type`, the exception's class, where one was raised; the next three are of the others only.",
)
GEN_AI_SERVER_TIME_TO_FIRST_TOKEN = Metric(
    "gen_ai.server.time_to_first_token", "histogram", "s", "Time to the first token of an answer.",
    _ASKED, buckets=_FIRST_S,
)
GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN = Metric(
    "gen_ai.server.time_per_output_token", "histogram", "s", "Mean time of each token after the first.",
    _ASKED, buckets=_EACH_S,
)
GEN_AI_CLIENT_TOKEN_USAGE = Metric(
    "gen_ai.client.token.usage", "histogram", "{token}", "Tokens of one request, by whether they were read or made.",
    (*_ASKED, "gen_ai.token.type"), buckets=_TOKENS, values={"gen_ai.token.type": ("input", "output")},
)

# fmt: on

PREDICTION = (
    PREDICTION_LATENCY_P50, PREDICTION_LATENCY_P999, PREDICTION_LATENCY_SAMPLES, PREDICTION_PHASE_DURATION,
    PREDICTION_CLASS, PREDICTION_CONFIDENCE, PREDICTION_CACHE,
)  # fmt: skip
DRIFT = (
    MODEL_DRIFT_THRESHOLD, MODEL_DRIFT_DETECTED, MODEL_DRIFT_WINDOW_SAMPLES, MODEL_DRIFT_FEATURES,
    MODEL_DRIFT_DISTANCE, MODEL_FEATURE_MISSING, MODEL_FEATURE_INVALID, MODEL_FEATURE_BIN, MODEL_REFERENCE_BIN_RATIO,
    MODEL_REFERENCE_SAMPLES,
)  # fmt: skip
QUALITY = (
    MODEL_PRECISION, MODEL_RECALL, MODEL_F1, MODEL_MATTHEWS, MODEL_AUC, MODEL_BRIER, MODEL_LOG_LOSS,
    MODEL_CALIBRATION_ERROR, MODEL_BIAS, MODEL_SCORE_BOUND, MODEL_PERFORMANCE_SAMPLES, MODEL_ESTIMATED_ACCURACY,
    MODEL_TRUTHS, MODEL_ERROR_ABSOLUTE, MODEL_ERROR_SQUARED, MODEL_CONFUSION, GROUND_TRUTH, GROUND_TRUTH_DELAY,
    GROUND_TRUTH_COVERAGE,
)  # fmt: skip
COMPARISON = (MODEL_AGREEMENT, MODEL_PREDICTION_DIFFERENCE, MODEL_PAIRED_DIFFERENCE, MODEL_COMPARED)
GENERATION = (
    GEN_AI_SERVER_REQUEST_DURATION, GEN_AI_SERVER_TIME_TO_FIRST_TOKEN, GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN,
    GEN_AI_CLIENT_TOKEN_USAGE,
)  # fmt: skip
