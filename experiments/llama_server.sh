#!/bin/sh
# Build llama-server from the source that llama-cpp-python carries, for this processor, and print where it is.
#
#   sh experiments/llama_server.sh FOLDER        # FOLDER keeps it; a second call finds it there. JOBS: compilers at the same time
#
# Needs cmake, ninja and a C++ compiler. The version is that of constraints.txt, which make bench-peers measures too.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
version=$(sed -n 's/^llama_cpp_python==//p' "$here/constraints.txt")
mkdir -p "$1"
cd "$1"
built=$PWD/$version/build/bin/llama-server
if [ ! -x "$built" ]; then
    source=llama_cpp_python-$version
    [ -f "$source.tar.gz" ] || ${PYTHON:-python3} -m pip download --quiet --no-deps --no-binary llama-cpp-python "llama-cpp-python==$version" >&2
    rm -rf "$source" "$version/source"
    tar -xzf "$source.tar.gz" "$source/vendor/llama.cpp"
    mkdir -p "$version"
    mv "$source/vendor/llama.cpp" "$version/source"
    rm -rf "$source"
    cmake -S "$version/source" -B "$version/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF \
        -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
        -DLLAMA_OPENSSL=OFF >&2
    ninja -C "$version/build" ${JOBS:+-j "$JOBS"} llama-server >&2
fi
echo "$built"
