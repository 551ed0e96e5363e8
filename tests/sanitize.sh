#!/bin/sh
# The CPU kernels under sanitizers: sanitize.sh address|thread PYTHON
#   address: AddressSanitizer and UBSan over the kernels' tests and over malformed arguments
#   thread: ThreadSanitizer over every operator called from two threads at once, each sharing its rows between two
# The kernels' source is compiled once, for baseline processors: the other instruction sets are the same source again.
set -eu
kind=$1
python=$(cd "$(dirname "$2")" && pwd)/$(basename "$2")
root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build/sanitize-$kind
PATH=$(dirname "$python"):$PATH
export PATH DIFFLAYERS_CUDA=0 DIFFLAYERS_REQUIRE_KERNELS=1 DIFFLAYERS_LIBRARY="$build/_C.so"
library() { g++ -print-file-name="$1"; }
flags="-O1 -g1 -fno-omit-frame-pointer"
case $kind in
  address) flags="$flags -fsanitize=address,undefined -fno-sanitize-recover=undefined" ;;
  thread) flags="$flags -fsanitize=thread -include $root/tests/reliability/threads_in_parallel_for.h" ;;
  *) echo "sanitize.sh: address or thread, got $kind" >&2; exit 2 ;;
esac
cmake -S "$root/csrc" -B "$build" -G Ninja -DPython_EXECUTABLE="$python" -DCMAKE_CXX_COMPILER=g++ \
  -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG="$flags" -DDL_INSTRUCTION_SETS=baseline
cmake --build "$build"
cd "$root"
case $kind in
  address)
    # leaks of the interpreter and of torch are not ours; make leaks counts those of the kernels
    export ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0:allocator_may_return_null=1 OMP_NUM_THREADS=1
    export LD_PRELOAD="$(library libasan.so) $(library libubsan.so) $(library libstdc++.so)"
    "$python" -m pytest -q -p no:cacheprovider tests/reliability/test_sanitized.py \
      tests/sorting/test_kernels.py tests/estimators/test_kernels.py \
      tests/subsets/test_exactly_k.py tests/subsets/test_projections.py \
      tests/ransac/test_ready_models.py tests/ransac/test_scoring.py tests/ransac/test_levenberg_marquardt.py \
      tests/ransac/test_epipolar_solvers.py tests/ransac/test_pose_and_homography.py
    "$python" -m tests.reliability.fuzz --cases "${CASES:-300}" --target operator:
    "$python" -m tests.reliability.fuzz --cases "${CASES:-300}" --target table:
    ;;
  thread)
    # addresses are laid out as that of a process without randomisation: newer kernels' are beyond what gcc 12 knows
    export TSAN_OPTIONS="suppressions=$root/tests/reliability/thread_sanitizer.txt:halt_on_error=0:exitcode=66"
    setarch -R env LD_PRELOAD="$(library libtsan.so) $(library libstdc++.so)" \
      "$python" -m tests.reliability.two_threads --calls "${CALLS:-200}"
    ;;
esac
