"""placeholder"""
def track_run(store, run_dir):
    pass
