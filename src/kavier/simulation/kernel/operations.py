"""What the compiled code can be asked to do: the first argument of `dispatch`."""

PLAY_REPLICA = 0  # address of REPLICA, of SETTINGS, until -> 1; 0 when an array is full
PLAY_FLEET = 1  # address of FLEET, until -> see `fleet.play_fleet`
ACCUMULATE_STEPS = 2  # address of TIMELINE, of STEPs, their number -> how many fitted
FILL_ENERGIES = 3  # address of POWER, of STEPs, their number -> 0
PACK_REQUESTS = 4  # address of SETTINGS, of COLUMNS, max_model_len -> answers cut there
UNPACK_REQUESTS = 5  # address of SETTINGS, of COLUMNS -> requests that did not finish
RANK_KEYS = 6  # C function (address of ARRIVAL, 0) -> key; address of ARRIVALs, of keys, their number -> 0
