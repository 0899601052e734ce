// Random operations on a small prefix index, for the sanitized run. See sanitized.cc.
#pragma once

#include <memory>
#include <random>

// Aborts with a message when the index contradicts itself.
void index_random(long operations, std::mt19937& random);
