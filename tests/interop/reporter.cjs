// A backend for the StatsD daemon: prints what it reports at each flush, a line of JSON each.
exports.init = (_startup, _config, events) => {
  events.on('flush', (_timestamp, { counters, gauges, timers, timer_counters }) => {
    console.log(JSON.stringify({ counters, gauges, timers, timer_counters }));
  });
  return true;
};
