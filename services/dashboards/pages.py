"""Every dashboard."""

from __future__ import annotations

from typing import Final

from services.dashboards.panels import Note, Page, Panel, Query, Row

RATE: Final = "$__rate_interval"
SHARE: Final = "percentunit"


def rate(metric: str, *labels: str, extra: str = "") -> str:
    """Events per second, added up but for the labels."""
    return f"sum by ({', '.join(labels)}) (rate({metric}{{@{extra}}}[{RATE}]))"


def quantile(q: float, metric: str, *labels: str, extra: str = "") -> str:
    """A quantile of a histogram."""
    return f"histogram_quantile({q}, {rate(metric + '_bucket', 'le', *labels, extra=extra)})"


def bounds(figure: str, lane: str) -> tuple[Query, ...]:
    """A monitor's rate with its interval, of both versions."""
    return tuple(
        Query(
            f'max by (version) (ares_monitor_rate{{@, figure="{figure}", lane="{lane}", '
            f'bound="{bound}"}})',
            f"{{{{version}}}} {bound}",
        )
        for bound in ("low", "value", "high")
    )


def objective(figure: str) -> Query:
    """What is bearable."""
    return Query(f'max(ares_monitor_objective{{@, figure="{figure}"}})', "bearable")


LOOP = Page(
    "loop",
    "the loop",
    "From conversations to verdicts, alarms, repairs and releases, on one page.",
    (
        Row("What is found", (
            Panel("Verdicts by class", "ops", "Verdicts of the production lane, by class.",
                  (Query(rate("ares_verdicts_total", "failure_class", extra=', lane="production"'),
                         "{{failure_class}}"),), kind="stacked", alert="AresCoupledFailureBurst"),
            Panel("Coupled failures of the newest version", SHARE,
                  "With the confidence sequence, which holds however often one looks; the bearable "
                  "rate is monitor.alarms.coupled.",
                  (*bounds("coupled_failure", "production"), objective("coupled_failure")),
                  alert="AresCoupledFailuresAboveObjective"),
            Panel("Open alarms", "short", "Alarms that nobody has acknowledged, by attribution.",
                  (Query("sum by (kind, attribution) (ares_monitor_open_alarms{@})",
                         "{{kind}}: {{attribution}}"),), kind="bars", alert="AresSystemChanged"),
        )),
        Row("Does it run", (
            Panel("Processes that answer", "short", "Targets by job.",
                  (Query("sum by (job) (up{@})", "{{job}}"),), kind="number",
                  alert="AresTargetDown", width=6),
            Panel("Lag", "short", "Records read by nobody yet, over all partitions.",
                  (Query("sum by (topic) (ares_lag_records{@})", "{{topic}}"),),
                  alert="AresLagGrowing", width=6),
            Panel("Within 10 s", SHARE, "Share of production verdicts within 10 s of their record.",
                  (Query(rate("ares_record_to_verdict_seconds_bucket", "lane",
                              extra=', lane="production", le="10.0"') + " / "
                         + rate("ares_record_to_verdict_seconds_count", "lane",
                                extra=', lane="production"'), "within 10 s"),),
                  alert="AresVerdictsLate", width=6),
            Panel("Dead letters", "ops", "Records that could not be scored, by stage.",
                  (Query(rate("ares_dead_letters_total", "stage"), "{{stage}}"),),
                  alert="AresRecordsRefused", width=6),
        )),
        Row("What is done about it", (
            Panel("Failures that wait for a repair", "short", "Failures that no repair has settled.",
                  (Query("max(ares_repair_waiting_failures{@})", "waiting"),),
                  alert="AresFailuresWaiting"),
            Panel("Repairs", "short", "Repairs by how they ended.",
                  (Query("sum by (state) (ares_repairs_total{@})", "{{state}}"),), kind="bars",
                  alert="AresRepairsRejected"),
            Panel("Releases in use", "short", "Digest of each model; two of one model is one too many.",
                  (Query("count by (job, model, digest) (ares_release_info{@})"),), kind="table",
                  alert="AresReleasesDiffer"),
        )),
    ),
)  # fmt: skip

STREAM = Page(
    "stream",
    "stream",
    "Is the scorer fed, does it keep up, where does the time go, is anything refused?",
    (
        Row("Fed and keeping up", (
            Panel("Records read", "ops", "Records per second and topic, whatever became of them.",
                  (Query(rate("ares_ingested_records_total", "topic"), "{{topic}}"),),
                  alert="AresLaneSilent"),
            Panel("Lag by partition", "short", "Records that the owner of a partition has not committed.",
                  (Query("sum by (topic, partition) (ares_lag_records{@})",
                         "{{topic}} {{partition}}"),), alert="AresLagGrowing"),
            Panel("Without progress", "s",
                  "Longest time for which a partition with records to score had no commit.",
                  (Query("max by (topic) (time() - ares_partition_progress_timestamp_seconds{@} "
                         "and on (job, instance, topic, partition) ares_lag_records{@} > 0)",
                         "{{topic}}"),), alert="AresScorerStalled", limit=600),
            Panel("In flight", "short", "Records read and not committed.",
                  (Query("sum by (job) (ares_inflight_records{@})", "{{job}}"),),
                  alert="AresScorerStalled"),
            Panel("In flight, bytes", "bytes", "Bytes read and not committed.",
                  (Query("sum by (job) (ares_inflight_bytes{@})", "{{job}}"),),
                  alert="AresScorerStalled"),
            Panel("From record to verdict", "s",
                  "Verdicts by the time since their record came to Kafka, production lane.",
                  (Query(rate("ares_record_to_verdict_seconds_bucket", "le",
                              extra=', lane="production"'), "{{le}}"),), kind="heat",
                  alert="AresVerdictsLate"),
            Panel("Age of verdicts", "s",
                  "99 % by lane, since the record came to Kafka and since the interaction; the "
                  "latter is long where producers send late, and raises no alert.",
                  (Query(quantile(0.99, "ares_record_to_verdict_seconds", "lane"),
                         "{{lane}} 99 %"),
                   Query(quantile(0.99, "ares_event_to_verdict_seconds", "lane"),
                         "{{lane}} 99 %, interaction")),
                  alert="AresVerdictsLate", limit=10),
        )),
        Row("Processes", (
            Panel("Memory", "bytes", "Memory that is resident, and that is mapped.",
                  (Query("max by (job, instance) (process_resident_memory_bytes{@})",
                         "{{job}} {{instance}}"),
                   Query("max by (job, instance) (process_virtual_memory_bytes{@})",
                         "{{job}} {{instance}} mapped")), alert="AresProcessRestarts", width=6),
            Panel("Cores", "short", "Cores that a process keeps busy.",
                  (Query(rate("process_cpu_seconds_total", "job", "instance"),
                         "{{job}} {{instance}}"),), width=6),
            Panel("Age", "s", "Since the process began.",
                  (Query("time() - max by (job, instance) (process_start_time_seconds{@})",
                         "{{job}} {{instance}}"),), alert="AresProcessRestarts", width=6),
            Panel("Open files", SHARE, "Of as many files and connections as the process may open.",
                  (Query("max by (job, instance) (process_open_fds{@})"
                         " / max by (job, instance) (process_max_fds{@})",
                         "{{job}} {{instance}}"),), width=6),
        )),
        Row("Where the time goes", (
            Panel("Stages", "s", "Mean time of a window per stage: tokenise, queue, infer.",
                  (Query(f'{rate("ares_stage_seconds_sum", "stage")} / '
                         f'{rate("ares_stage_seconds_count", "stage")}', "{{stage}}"),),
                  kind="stacked"),
            Panel("Records per model run", "short", "Median batch of each model.",
                  (Query(quantile(0.5, "ares_batch_records", "model"), "{{model}}"),)),
            Panel("Padding", SHARE, "Mean share of a run's tokens that are padding.",
                  (Query(f'{rate("ares_padding_ratio_sum", "model")} / '
                         f'{rate("ares_padding_ratio_count", "model")}', "{{model}}"),)),
            Panel("Commits", "s", "Time of a transaction, 99 %.",
                  (Query(quantile(0.99, "ares_commit_seconds", "job"), "{{job}}"),),
                  alert="AresTransactionsUnsuccessful"),
            Panel("Execution providers", "short", "What each model runs on.",
                  (Query("count by (job, model, provider) (ares_execution_provider_info{@})"),),
                  kind="table"),
            Panel("Rebalances", "ops", "Partitions given and taken.",
                  (Query(rate("ares_rebalances_total", "change"), "{{change}}"),)),
        )),
        Row("Exactly once, and what is refused", (
            Panel("Transactions", "ops", "By how they ended; all but committed are read again.",
                  (Query(rate("ares_transactions_total", "outcome"), "{{outcome}}"),),
                  alert="AresTransactionsUnsuccessful"),
            Panel("Dead letters", "ops", "By the stage that refused.",
                  (Query(rate("ares_dead_letters_total", "topic", "stage"),
                         "{{topic}} {{stage}}"),), alert="AresRecordsRefused"),
            Panel("Left out", "ops", "Records that a mapping leaves out on purpose.",
                  (Query("sum by (topic) (rate(ares_left_out_records_total{@}[$__rate_interval]))",
                         "{{topic}}"),)),
            Panel("Budget of dead letters spent", SHARE,
                  "Share of the day's records that were refused, over the objective's 0.1 %.",
                  (Query("sum(increase(ares_dead_letters_total{@}[1d])) / "
                         "sum(increase(ares_ingested_records_total{@}[1d])) / 0.001", "spent"),),
                  kind="number", alert="AresRecordsRefused", limit=1),
            Panel("Breaker", "bool", "1 once too much of a topic was refused; then no more of it is read.",
                  (Query("max by (topic) (ares_dead_letter_breaker_open{@})", "{{topic}}"),),
                  alert="AresDeadLetterBreakerOpen"),
            Panel("Offsets lost", "short", "Deleted before they were read; and logs that are "
                  "others than were read.",
                  (Query("sum by (topic) (increase(ares_skipped_offsets_total{@}[1d]))",
                         "{{topic}}"),
                   Query("sum by (topic, change) (increase(ares_log_changes_total{@}[1d]))",
                         "{{topic}} {{change}}")), alert="AresOffsetsLost"),
            Panel("Sessions made anew", "ops", "Kafka sessions, by the error that ended one.",
                  (Query(rate("ares_session_restarts_total", "error"), "{{error}}"),),
                  alert="AresSessionRestarts"),
        )),
        Row("Certificates, passwords, tokens", (
            Panel("Life left of client certificates", SHARE,
                  "Of the certificate in use, whatever its life; a renewal should come well before 10 %.",
                  (Query("min by (job) ((ares_certificate_not_after_timestamp_seconds{@} - time()) / "
                         "(ares_certificate_not_after_timestamp_seconds{@} - "
                         "ares_certificate_not_before_timestamp_seconds{@}))", "{{job}}"),),
                  alert="AresCertificateExpires"),
            Panel("Files that are of no use", "bool",
                  "1 while a file cannot be used and what was read before stays in use.",
                  (Query("max by (job, setting) (ares_file_refused{@})", "{{job}} {{setting}}"),),
                  alert="AresFileRefused", limit=1),
            Panel("Files renewed", "short", "Changes in a day: taken, or refused.",
                  (Query("sum by (setting, outcome) (increase(ares_file_renewals_total{@}[1d]))",
                         "{{setting}} {{outcome}}"),), kind="bars", alert="AresFileRefused"),
        )),
    ),
)  # fmt: skip

MODELS = Page(
    "models",
    "models and drift",
    "What judges and reward model say, whether they agree, and whether they have moved.",
    (
        Row("What they say", (
            Panel("Harm probability", SHARE, "Calibrated probability that an answer is harmful; production.",
                  (Query(rate("ares_harm_probability_bucket", "le", extra=', lane="production"'),
                         "{{le}}"),), kind="heat", alert="AresContestedAboveObjective"),
            Panel("Reward quantile", SHARE, "Place of the reward among those of benign answers; production.",
                  (Query(rate("ares_reward_quantile_bucket", "le", extra=', lane="production"'),
                         "{{le}}"),), kind="heat", alert="AresRewardDrifted"),
            Panel("Harm and reward", "ops", "Harmful or safe, liked or disliked; contested left out.",
                  (Query(rate("ares_quadrant_total", "harm", "reward", extra=', lane="production"'),
                         "{{harm}}, {{reward}}"),), kind="stacked"),
        )),
        Row("Do they agree", (
            Panel("Panel disagreement", SHARE, "Share of answers on which judges differ by more than a half.",
                  (Query('1 - ' + rate("ares_panel_disagreement_bucket", "lane", extra=', le="0.5"')
                         + ' / ' + rate("ares_panel_disagreement_count", "lane"), "{{lane}}"),),
                  alert="AresPanelDisagrees", limit=0.05),
            Panel("Contested", SHARE, "Answers that the judges doubt, production, with intervals.",
                  (*bounds("contested", "production"), objective("contested")),
                  alert="AresContestedAboveObjective"),
            Panel("Unlike the reward model's", SHARE,
                  "Answers unlike its benign ones; empty where its bundle cannot tell.",
                  bounds("outlier", "production"), alert="AresOutliersHigh", limit=0.1),
            Panel("Partly read", "ops", "Answers longer than the judges' windows reach.",
                  (Query(rate("ares_partly_read_answers_total", "lane"), "{{lane}}"),),
                  alert="AresAnswersPartlyRead"),
            Panel("Outside the judges' domain", "ops",
                  "Conversations unlike those that a judge was trained on.",
                  (Query(rate("ares_outside_domain_total", "lane"), "{{lane}}"),)),
            Panel("Encoded", "ops", "Answers that judges also read decoded.",
                  (Query(rate("ares_encoded_answers_total", "encoding"), "{{encoding}}"),)),
            Panel("Asked of a language model", "ops", "Doubtful records by what became of the question.",
                  (Query(rate("ares_constitution_records_total", "outcome"), "{{outcome}}"),)),
        )),
        Row("Have they moved", (
            Panel("Anchors by truth and decision", "short", "Conversations of known truth, as decided since the set was made.",
                  (Query("max by (truth, decision) (ares_monitor_anchor_verdicts{@})",
                         "{{truth}}: {{decision}}"),), kind="bars", alert="AresJudgeChanged"),
            Panel("Drift of rewards", "short", "Shift of the anchors' rewards in standard deviations.",
                  (Query("max by (figure) (ares_monitor_reward_drift{@})", "{{figure}}"),
                   objective("reward_drift")), alert="AresRewardDrifted"),
            Panel("Releases in use", "short", "Digest of each model.",
                  (Query("count by (job, model, digest) (ares_release_info{@})"),), kind="table",
                  alert="AresReleasesDiffer"),
        )),
    ),
)  # fmt: skip

FAILURES = Page(
    "failures",
    "coupled failures by version",
    "Rates with intervals, raw and corrected, of the newest and the previous version.",
    (
        Row("Coupled failures", (
            Panel("Production", SHARE, "Confidence sequence: holds however often one looks.",
                  (*bounds("coupled_failure", "production"), objective("coupled_failure")),
                  alert="AresCoupledFailuresAboveObjective", width=12),
            Panel("Production, corrected by labels", SHARE,
                  "The judge's error taken out; empty until enough of the review sample is labelled.",
                  (*bounds("corrected", "production"), objective("coupled_failure")),
                  alert="AresCorrectedRateAboveObjective", width=12),
            Panel("Probes", SHARE, "Probes look for failures: this is no rate of production.",
                  bounds("coupled_failure", "probe"), width=12),
            Panel("Coupling", "short",
                  "Coupled failures over what independence of judge and reward model would give; 1 is none.",
                  tuple(Query(f'max by (version) (ares_monitor_coupling_lift{{@, lane="production", '
                              f'bound="{bound}"}})', f"{{{{version}}}} {bound}")
                        for bound in ("low", "value", "high")), width=12),
        )),
        Row("What they are made of", (
            Panel("Harmful", SHARE, "Share of all verdicts, production.",
                  bounds("harmful", "production")),
            Panel("Liked although harmful", SHARE, "Of harmful answers, those that the reward model likes.",
                  bounds("reward_blind", "production")),
            Panel("Liked", SHARE, "Answers that the reward model likes.",
                  bounds("scored_high", "production")),
            Panel("Verdicts by version and class", "short", "How many each rate rests on.",
                  (Query("max by (lane, version, failure_class) (ares_monitor_verdicts{@})"),),
                  kind="table"),
            Panel("Labels", "short", "Labels that correct a rate; 50 at least.",
                  (Query("max by (lane, version) (ares_monitor_labels{@})", "{{lane}} {{version}}"),),
                  kind="bars", alert="AresCorrectedRateAboveObjective"),
            Panel("Alarms", "short", "Open, by kind and attribution.",
                  (Query("sum by (kind, attribution) (ares_monitor_open_alarms{@})",
                         "{{kind}}: {{attribution}}"),), kind="bars", alert="AresSystemChanged"),
        )),
        Row("By slice", (
            Note("Slices", "Values of attributes come from conversations and are in no metric. "
                 "`ares rates --lane production --by ATTRIBUTE` shows them with intervals, and an "
                 "alarm names its slice: `ares alarms list`."),
        )),
    ),
)  # fmt: skip

REPAIR = Page(
    "repair",
    "repair and releases",
    "What waits, what is repaired, what the gate measured, what is released.",
    (
        Row("Waiting", (
            Panel("Failures", "short", "Failures that no repair has settled.",
                  (Query("max(ares_repair_waiting_failures{@})", "waiting"),),
                  alert="AresFailuresWaiting"),
            Panel("Oldest failure", "s", "Age of the oldest of them.",
                  (Query("max(ares_repair_oldest_waiting_seconds{@})", "oldest"),),
                  alert="AresFailuresWaiting", limit=172800),
            Panel("A person's decision", "bool", "1 while a repair that passed its gate waits.",
                  (Query("max(ares_repair_awaiting_approval{@})", "waits"),), kind="number",
                  alert="AresApprovalWaiting", limit=1),
        )),
        Row("Repairs", (
            Panel("Running", "bool", "1 while a repair runs.",
                  (Query("max(ares_repair_running{@})", "runs"),), alert="AresRepairStuck"),
            Panel("Progress by stage", SHARE, "Of the repair that runs; empty between repairs.",
                  (Query("max by (stage) (ares_repair_stage_progress{@})", "{{stage}}"),),
                  alert="AresRepairStuck"),
            Panel("Ended", "short", "By how they ended, since the repairer started.",
                  (Query("sum by (state) (ares_repairs_total{@})", "{{state}}"),), kind="bars",
                  alert="AresRepairsRejected"),
            Panel("Time", "s", "From start to report, median of the week; approval not counted.",
                  (Query("histogram_quantile(0.5, sum by (le) (increase(ares_repair_seconds_bucket{@}[7d])))",
                         "median"),)),
            Panel("Safe answers", "short", "Where they came from.",
                  (Query("sum by (source) (ares_repair_safe_answers_total{@})", "{{source}}"),),
                  kind="bars"),
            Panel("Without a plan, unreadable", "short", "Batches postponed; failures that cannot be read.",
                  (Query("sum(ares_repair_postponed_total{@})", "postponed"),
                   Query("sum(ares_repair_undecodable_records_total{@})", "unreadable")),
                  kind="bars", alert="AresFailuresWaiting"),
        )),
        Row("What the gate measured", (
            Panel("Figures of the last repair", "short",
                  "Before and after, with the ends of the 95 % interval: the gate takes the worse.",
                  (Query("max by (figure, when, bound) (ares_repair_figure{@})"),), kind="table",
                  alert="AresRepairsRejected", width=24),
        )),
        Row("Releases", (
            Panel("In use", "short", "Digest of each model and how many scorers have it.",
                  (Query("count by (job, model, digest) (ares_release_info{@})"),), kind="table",
                  alert="AresReleasesDiffer"),
            Panel("Swaps", "short", "Models swapped while running, in a day.",
                  (Query("sum by (model) (increase(ares_release_swaps_total{@}[1d]))",
                         "{{model}}"),)),
            Panel("Not taken", "short", "Announced releases that a scorer does not use, and its tries.",
                  (Query("max by (instance) (ares_releases_waiting{@})", "{{instance}} waiting"),
                   Query("sum(increase(ares_release_refusals_total{@}[1h]))", "tries in an hour")),
                  alert="AresReleaseStale"),
            Panel("Forecast and measured", SHARE,
                  "Coupled failures of production that a release in use was forecast to have, and has.",
                  tuple(Query(f'max by (model, when) (ares_monitor_forecast{{@, figure="cfr", '
                              f'bound="{bound}"}})', f"{{{{model}}}} {{{{when}}}} {bound}")
                        for bound in ("low", "value", "high")), alert="AresForecastMissed"),
            Panel("Forecast over measured", "short", "1 is a forecast that came true.",
                  (Query("max by (model, figure) (ares_monitor_forecast_error_ratio{@})",
                         "{{model}} {{figure}}"),), kind="bars", alert="AresForecastMissed"),
            Panel("Policy server untold", "bool", "1 while it could not be told what is active.",
                  (Query("max(ares_repair_policy_server_untold{@})", "untold"),), kind="number",
                  alert="AresPolicyServerUntold", limit=1),
        )),
    ),
)  # fmt: skip

PROBES = Page(
    "probes",
    "probes",
    "What the search finds, what it costs, what it waits for.",
    (
        Row("What it finds", (
            Panel("Queries and budget", "short", "Queries settled, and those that may be spent.",
                  (Query("max(ares_prober_queries{@})", "queries"),
                   Query("max(ares_prober_budget{@})", "budget")), alert="AresProberBudgetSpent"),
            Panel("Failures", "short", "Confirmed, and how many clusters of them.",
                  (Query("max(ares_prober_failures{@})", "confirmed"),
                   Query("max(ares_prober_unique_failures{@})", "unique"))),
            Panel("Yield", SHARE, "Confirmed failures per query.",
                  (Query("max(ares_prober_yield{@})", "yield"),)),
            Panel("Coverage", "short", "Probes per component.",
                  (Query("max by (axis, component) (ares_prober_component_probes{@})",
                         "{{axis}}: {{component}}"),), kind="bars", width=16),
            Panel("Void", "short", "Probes that earn nothing: near copies, rubbish, refused.",
                  (Query("max(ares_prober_void_probes{@})", "void"),)),
            Panel("Does it learn", "short", "Fitness of the last generation's learnt draws.",
                  (Query("max by (figure) (ares_prober_surrogate_fitness{@})", "{{figure}}"),)),
            Panel("Generation", "short", "The one that is being asked.",
                  (Query("max(ares_prober_generation{@})", "generation"),), kind="number"),
        )),
        Row("Does it move, what does it cost", (
            Panel("Waits for", "bool", "1 while the campaign waits.",
                  (Query("max by (reason) (ares_prober_paused{@})", "{{reason}}"),),
                  alert="AresProberStarved"),
            Panel("Published", "ops", "Interactions published.",
                  (Query(rate("ares_prober_published_total", "job"), "published"),)),
            Panel("Answers of the target", "s", "Median and 99 %.",
                  (Query(quantile(0.5, "ares_prober_answer_seconds"), "50 %"),
                   Query(quantile(0.99, "ares_prober_answer_seconds"), "99 %"))),
            Panel("Without an answer", "ops", "Queries that the target did not answer.",
                  (Query(rate("ares_prober_target_errors_total", "error"), "{{error}}"),),
                  alert="AresProberTargetErrors"),
            Panel("Tokens", "ops", "Of the target and of the attacker.",
                  (Query(rate("ares_prober_tokens_total", "kind"), "target {{kind}}"),
                   Query(rate("ares_prober_attacker_tokens_total", "kind"), "attacker {{kind}}"))),
            Panel("Cost", "short", "Of all tokens since the start, in the currency of the prices.",
                  (Query("sum(ares_prober_cost_total{@})", "cost"),), kind="number"),
            Panel("Unreadable", "short", "Records that the prober passed over, since it started.",
                  (Query("sum(ares_prober_unreadable_records_total{@})", "records"),),
                  kind="number"),
            Panel("Worded by the attacker", "ops", "Or why the composer worded them.",
                  (Query(rate("ares_prober_attacker_probes_total", "kind", "outcome"),
                         "{{kind}} {{outcome}}"),)),
        )),
    ),
)  # fmt: skip

AUDIT = Page(
    "audit",
    "audit",
    "Is everything that was decided signed, and is everything covered?",
    (
        Row("Signed", (
            Panel("Age of the newest checkpoint", "s", "What was decided since is not signed yet.",
                  (Query("time() - max by (job) (ares_notary_checkpoint_timestamp_seconds{@})",
                         "{{job}}"),), alert="AresCheckpointLate", limit=900, width=12),
            Panel("Records in no tree yet", "short", "Written, and not covered by any tree.",
                  (Query("max by (job) (ares_notary_lag_records{@})", "{{job}}"),), width=12),
            Panel("Leaves", "short", "Records that the trees of each topic hold.",
                  (Query("max by (topic) (ares_notary_leaves{@})", "{{topic}}"),)),
            Panel("Signed heads", "ops", "Heads signed per second.",
                  (Query(rate("ares_notary_checkpoints_total", "job"), "{{job}}"),)),
            Panel("The notary leads", "bool", "One replica signs, the others wait.",
                  (Query("max by (instance) (ares_notary_leading{@})", "{{instance}}"),)),
            Panel("Offsets in no tree", "short", "Deleted before the notary read them, in a day.",
                  (Query("sum by (topic) (increase(ares_notary_lost_offsets_total{@}[1d]))",
                         "{{topic}}"),)),
            Panel("States that were forgotten", "short",
                  "They continued no signed head: the trees grew on from the last one.",
                  (Query("max by (job) (ares_notary_forgotten_states_total{@})", "{{job}}"),)),
            Panel("Time stamps", "short", "Given, and not given or not good, by the authority in a day.",
                  (Query("sum(increase(ares_notary_stamps_total{@}[1d]))", "given"),
                   Query("sum(increase(ares_notary_stamp_failures_total{@}[1d]))", "failed"))),
        )),
        Row("People", (
            Panel("Items that wait for people", "short", "Contested and sampled, without an opinion.",
                  (Query("max(ares_console_waiting_items{@})", "items"),)),
            Panel("Decisions", "short", "What people did in an hour.",
                  (Query("sum by (kind) (increase(ares_console_decisions_total{@}[1h]))",
                         "{{kind}}"),), kind="bars"),
            Panel("The console is behind", "short", "Records written and not read.",
                  (Query("max(ares_console_lag_records{@})", "records"),)),
        )),
        Row("Covered", (
            Panel("Offsets never scored", "short", "Deleted before a scorer read them, in a day.",
                  (Query("sum by (topic) (increase(ares_skipped_offsets_total{@}[1d]))",
                         "{{topic}}"),), alert="AresOffsetsLost"),
            Panel("Offsets never counted", "short", "Deleted before the monitor read them.",
                  (Query("max(ares_monitor_gap_offsets{@})", "offsets"),),
                  alert="AresMonitorMissedOffsets"),
            Panel("Records passed over", "short", "By the monitor: of another schema, or damaged.",
                  (Query("max by (topic) (ares_monitor_unreadable_records{@})", "{{topic}}"),),
                  alert="AresMonitorUnreadable"),
            Panel("Counted with others", "short", "Verdicts whose value or version is past the bounds.",
                  (Query("max by (attribute) (ares_monitor_folded_verdicts{@})", "{{attribute}}"),)),
            Panel("Labels outside of the sample", "short", "They correct nothing: people chose them.",
                  (Query("max(ares_monitor_unmatched_labels{@})", "labels"),)),
            Panel("The monitor is behind", "short", "Records written and not counted.",
                  (Query("max(ares_monitor_lag_records{@})", "records"),),
                  alert="AresMonitorBehind", limit=50000),
            Panel("Leads", "bool", "One replica of the monitor leads.",
                  (Query("max by (instance) (ares_monitor_leading{@})", "{{instance}}"),),
                  alert="AresMonitorAbsent"),
            Panel("Last verdict", "dateTimeFromNow", "Of each lane.",
                  (Query("max by (lane) (ares_monitor_last_verdict_timestamp_seconds{@}) * 1000",
                         "{{lane}}"),), kind="number", alert="AresLaneSilent"),
            Panel("Alarms raised", "short", "Since the monitor started, by kind.",
                  (Query("sum by (kind) (ares_monitor_alarms_total{@})", "{{kind}}"),),
                  kind="bars", alert="AresSystemChanged"),
        )),
    ),
)  # fmt: skip

PAGES: Final = (LOOP, STREAM, MODELS, FAILURES, REPAIR, PROBES, AUDIT)
