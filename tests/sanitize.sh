#!/bin/sh
# Builds the CPU kernels with AddressSanitizer and UBSan and runs their tests on them: sanitize.sh PYTHON
set -eu
python=$1
root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build/sanitize
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
PATH=$(dirname "$python"):$PATH
export PATH DIFFLAYERS_CUDA=0 DIFFLAYERS_REQUIRE_KERNELS=1
cmake -S "$root/csrc" -B "$build" -G Ninja -DPython_EXECUTABLE="$python" -DCMAKE_BUILD_TYPE=Debug \
  -DCMAKE_CXX_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined -g1 -O1"
cmake --build "$build"
# leaks of the interpreter and of torch are not ours
cd "$root"
env ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0 OMP_NUM_THREADS=1 \
  LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so) $(g++ -print-file-name=libstdc++.so)" \
  DIFFLAYERS_LIBRARY="$build/_C.so" \
  "$python" -m pytest -q tests/sorting/test_kernels.py tests/estimators/test_kernels.py \
  tests/subsets/test_exactly_k.py tests/subsets/test_projections.py \
  tests/ransac/test_ready_models.py tests/ransac/test_scoring.py tests/ransac/test_levenberg_marquardt.py \
  tests/ransac/test_epipolar_solvers.py tests/ransac/test_pose_and_homography.py
